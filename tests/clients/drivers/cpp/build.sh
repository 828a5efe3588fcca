#!/bin/sh
# Builds the programs in C++ into the tools folder ($1), with what install-debian.sh has put there.
tools=$(cd "$1" && pwd) || exit 1
cd "$(dirname "$0")/../../../.." || exit 1
if [ ! -d "$tools/debian/cpp" ]; then
    echo "gRPC for C++ is missing: tests of C++ will be skipped"
    exit 0
fi
usr="$tools/debian/cpp/usr"
lib="$usr/lib/$(g++ -print-multiarch)"
# protoc and its plugin are from the same place as the libraries.
export PATH="$usr/bin:$PATH" LD_LIBRARY_PATH="$lib"
# Debian's gRPC uses libraries whose names differ from release to release.
flags="-L$lib -Wl,-rpath,$lib -Wl,-rpath-link,$lib -Wl,--copy-dt-needed-entries"
# Of the older kind: it holds for what the libraries need, too.
flags="$flags -Wl,--disable-new-dtags"
for folder in tests/clients/drivers/cpp clients/cpp; do
    make --no-print-directory -s -C "$folder" OUT="$tools/cpp" CXXFLAGS=-O0 \
        CPPFLAGS="-isystem $usr/include" LDFLAGS="$flags" \
        LDLIBS="-lgrpc++ -lgrpc -lgpr -lprotobuf -pthread" || exit 1
done
