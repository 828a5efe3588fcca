#!/bin/sh
# Unpacks what tests of clients need of Debian's into the tools folder ($1): Jython, a Java to run
# it where the machine has none, and gRPC for C++. Nothing is installed. Tests say what is missing,
# so a failure here is no failure.
tools=$(mkdir -p "$1" && cd "$1" && pwd) || exit 0

# Of `packages`, and what they depend on, those that the machine has not.
missing_of() {
    apt-get -s -o Debug::NoLocking=1 --no-install-recommends install "$@" 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

# Links of Debian's packages may name files from the root on.
mend_links() {
    find . -type l -lname '/*' | while read -r link; do
        target=$(readlink "$link")
        if [ -e ".$target" ]; then ln -sfn "$PWD$target" "$link"; fi
    done
}

# unpack FOLDER PACKAGES
unpack() {
    folder=$1
    shift
    rm -rf "$folder" && mkdir -p "$folder" && cd "$folder" || return 1
    apt-get download "$@" >/dev/null 2>&1 ||
        { apt-get update >/dev/null 2>&1 && apt-get download "$@" >/dev/null 2>&1; } || return 1
    for package in ./*.deb; do dpkg-deb -x "$package" . || return 1; done
    rm -f ./*.deb
    mend_links
}

# Of the jars that Jython names, those without which the standard library's sockets do not work.
jars="jython antlr3-runtime asm asm-commons guava icu4j jline2 jnr-constants jnr-ffi jnr-posix"
jars="$jars netty-buffer netty-codec netty-common netty-handler netty-resolver netty-transport"
jython() {
    unpack "$tools/debian/jython" jython libantlr3-runtime-java libasm-java libguava-java \
        libicu4j-java libjline2-java libjnr-constants-java libjnr-ffi-java libjnr-posix-java \
        libnetty-java || return 1
    if ! command -v java >/dev/null; then
        unpack "$tools/debian/java" $(missing_of default-jre-headless) || return 1
    fi
    cd "$tools/debian/jython" || return 1
    java=$(command -v java || ls "$tools"/debian/java/usr/lib/jvm/*/bin/java | head -n 1)
    "$java" -version >/dev/null 2>&1 || return 1
    path=
    for jar in $jars; do path="$path:$PWD/usr/share/java/$jar.jar"; done
    cat >run <<END
#!/bin/sh
exec "$java" -cp "${path#:}" -Dpython.home="$PWD/usr/share/jython" -Dpython.cachedir.skip=true \\
    org.python.util.jython "\$@"
END
    chmod +x run
    [ "$(./run -c 'import httplib, sys; print(sys.version_info[0])' 2>/dev/null)" = 2 ]
}

cpp() {
    command -v g++ >/dev/null && command -v make >/dev/null || return 1
    set -- libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
    packages=$(missing_of "$@")
    # No list of packages is there yet, or the machine has them all.
    [ "$packages" ] || { apt-get update >/dev/null 2>&1; packages=$(missing_of "$@"); }
    if [ "$packages" ]; then
        unpack "$tools/debian/cpp" $packages
    else
        command -v grpc_cpp_plugin >/dev/null && mkdir -p "$tools/debian/cpp"
    fi
}

(jython) || echo "Jython cannot be installed: tests of the ModSDK's file run on this Python only"
(cpp) || echo "gRPC for C++ cannot be installed: tests of C++ will be skipped"
exit 0
