//! Files and folders, made and written so that they last.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::error::{OpenError, at};

/// Makes a folder and those above it; every name that is new is synced.
pub(super) fn create_dir(dir: &Path) -> Result<(), OpenError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        None => return fs::create_dir(dir).map_err(at(dir)),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    };
    create_dir(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(dir)(error)),
        _ => sync_dir(parent),
    }
}

/// Reads every file of a folder to its end.
pub(super) fn read_files(dir: &Path) -> Result<(), OpenError> {
    let mut buffer = vec![0; 1 << 20];
    for path in files(dir)? {
        let mut file = File::open(&path).map_err(at(&path))?;
        while file.read(&mut buffer).map_err(at(&path))? > 0 {}
    }
    Ok(())
}

/// The files directly in a folder; none where there is no folder.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(dir))?,
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    Ok(paths.map_err(at(dir))?.into_iter().filter(|path| path.is_file()).collect())
}

/// After a failed write, some of what can be read may be in memory only, and no sync would save it.
/// So everything is written once more, as it is, and synced.
pub(super) fn write_back(dir: &Path) -> Result<(), OpenError> {
    for path in files(dir)? {
        let file = File::options().read(true).write(true).open(&path).map_err(at(&path))?;
        write_over(&file).and_then(|()| file.sync_all()).map_err(at(&path))?;
    }
    sync_dir(dir)
}

/// Writes a file's bytes over themselves. Holes stay holes, for there may be no room to fill them.
fn write_over(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut place = 0;
    loop {
        place = match seek(file, SeekFrom::Data(place)) {
            Ok(data) => data,
            // There is no data behind this place.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(place))?;
        while place < end {
            let bytes = buffer.len().min(usize::try_from(end - place).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..bytes], place)?;
            file.write_all_at(&buffer[..bytes], place)?;
            place += bytes as u64;
        }
    }
}

/// Syncs every file and folder below, and the folder itself.
pub(super) fn sync_tree(dir: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(&path).and_then(|file| file.sync_all()).map_err(at(&path))?,
        }
    }
    sync_dir(dir)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

pub(super) fn remove_dir(dir: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir)(error)),
        _ => Ok(()),
    }
}
