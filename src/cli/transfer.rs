//! `accolade export` and `accolade import`.

use std::{
    fs::{self, File, TryLockError},
    io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use data_encoding::HEXLOWER;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    CliError,
    connect::{ConnectError, ServerArgs},
    print, progress,
};
use crate::{
    client::{Pauses, may_pass},
    proto::v1::{
        ExportRecordsRequest, ImportRecordsRequest, ImportRecordsResponse, Seal, TitleItem,
        admin_service_client::AdminServiceClient, title_item::Item,
    },
};

/// Silence after which the connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Attempts without any progress after which a command gives up.
const ATTEMPTS_MAX: u32 = 10;

/// Longest line of a file: the largest item as JSON, which may write a byte as six.
const LINE_BYTES_MAX: u64 = 32 << 20;

/// The line that seals a file is shorter.
const SEAL_BYTES_MAX: u64 = 1 << 10;

/// Largest message: a catalogue.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Lines that are read ahead of the server.
const LINES_AHEAD: usize = 64;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// The file to write; until it is whole, it has the ending `.part`
    file: PathBuf,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title to import into, which may have another name than before
    title: String,
    /// A file of `export`
    file: PathBuf,
}

pub(super) async fn export(args: ExportArgs) -> Result<ExitCode, CliError> {
    let mut part = Part::open(&args.file)?;
    let bar = progress::rows("exporting");
    export_title(&args.server, &args.title, &mut part, &bar).await?;
    part.finish()?;
    bar.finish_and_clear();
    say!("{} items in `{}`", part.lines, args.file.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes a title's items behind what a part has; tries again while something comes.
pub(super) async fn export_title(
    server: &ServerArgs,
    title: &str,
    part: &mut Part,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let (mut pauses, mut attempts) = (Pauses::default(), 0);
    loop {
        let before = part.token.clone();
        let lost = match export_once(server, title, part, bar).await {
            Ok(()) => return Ok(()),
            Err(CliError::Status(status)) if is_to_begin_anew(&status) => *status,
            // A place that another server gave.
            Err(CliError::Status(status)) if !part.token.is_empty() && is_invalid(&status) => {
                part.back_to_title()?;
                *status
            }
            Err(error) => passing(error)?,
        };
        match is_to_begin_anew(&lost) {
            true => part.back_to_title()?,
            false => part.back_to_checkpoint()?,
        }
        attempts = if part.token == before { attempts + 1 } else { 0 };
        if attempts == ATTEMPTS_MAX {
            return Err(lost.into());
        }
        progress::tell(bar, &format!("accolade: {}; trying again", lost.message()));
        tokio::time::sleep(pauses.next(&lost)).await;
    }
}

async fn export_once(
    server: &ServerArgs,
    title: &str,
    part: &mut Part,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let client = AdminServiceClient::new(server.connect().await?);
    let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = ExportRecordsRequest { title: title.to_owned(), after: part.token.clone() };
    let mut items = client.export_records(request).await?.into_inner();
    loop {
        let item = timeout(SILENCE_MAX, items.message()).await;
        let item = item.map_err(|_| Status::unavailable("the server went silent"))??;
        let item = item.ok_or_else(|| Status::unavailable("the export ended early"))?;
        let item = item.item.unwrap_or_default();
        part.write(&item)?;
        bar.inc(1);
        if let Some(Item::End(_)) = item.item {
            return Ok(());
        }
    }
}

/// Whether what was given already does not go with what comes next any more.
fn is_to_begin_anew(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    matches!(reason.as_deref(), Some("EXPORT_OUTDATED" | "CURSOR_EXPIRED" | "CURSOR_IN_FUTURE"))
}

fn is_invalid(status: &Status) -> bool {
    status.code() == Code::InvalidArgument
}

/// A status that may pass by itself; other errors end the command.
fn passing(error: CliError) -> Result<Status, CliError> {
    match error {
        CliError::Connect(error @ ConnectError::Unreachable { .. }) => {
            Ok(Status::unavailable(error.to_string()))
        }
        CliError::Status(status) if may_pass(&status) => Ok(*status),
        error => Err(error),
    }
}

/// A file that is being written, and the place that an export can go on from.
pub(super) struct Part {
    whole: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    /// Of the last checkpoint; "" where there is none.
    token: String,
    /// Where the line of that ends, and how many lines there are up to it.
    kept: (u64, u64),
    /// The same of where the title begins.
    title: (u64, u64),
    bytes: u64,
    pub(super) lines: u64,
}

// === impl Part ===

impl Part {
    /// Goes on with a part, or begins one.
    fn open(whole: &Path) -> Result<Self, CliError> {
        let mut part = Self::lock(whole)?;
        let path = part.path.clone();
        let mut lines = Lines::open(&path)?;
        while let Some(line) = lines.next_item() {
            // What was cut off, or is not sound, is written anew.
            let Ok(TitleItem { item: Some(item) }) = line else { break };
            if let Item::Checkpoint(checkpoint) = item {
                part.token = checkpoint.token;
                part.kept = (lines.bytes, lines.number);
            }
        }
        part.back_to_checkpoint()?;
        Ok(part)
    }

    /// Begins a part; an older one is emptied.
    pub(super) fn create(whole: &Path) -> Result<Self, CliError> {
        let mut part = Self::lock(whole)?;
        part.back_to_checkpoint()?;
        Ok(part)
    }

    /// Takes a part as it is, which nobody else may write then.
    fn lock(whole: &Path) -> Result<Self, CliError> {
        check_free(whole)?;
        let mut path = whole.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let file = File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let file = file.map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("`{}` is being written by another process", path.display());
                return Err(CliError::Usage(message));
            }
            Err(TryLockError::Error(source)) => return Err(at(&path)(source)),
        }
        // Whoever had the lock before may just have finished.
        check_free(whole)?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let (whole, token) = (whole.to_owned(), String::new());
        let (kept, title) = ((0, 0), (0, 0));
        Ok(Self { whole, path, file, token, kept, title, bytes: 0, lines: 0 })
    }

    pub(super) fn write(&mut self, item: &TitleItem) -> Result<(), CliError> {
        let mut line = print::json("TitleItem", item);
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(at(&self.path))?;
        self.bytes += line.len() as u64;
        self.lines += 1;
        if let Some(Item::Checkpoint(checkpoint)) = &item.item {
            self.token.clone_from(&checkpoint.token);
            self.kept = (self.bytes, self.lines);
        }
        Ok(())
    }

    /// From here on a title is exported from its beginning, and goes on from here at the earliest.
    pub(super) fn begin_title(&mut self) {
        self.token = String::new();
        self.kept = (self.bytes, self.lines);
        self.title = self.kept;
    }

    /// Drops what there is of the title.
    fn back_to_title(&mut self) -> Result<(), CliError> {
        (self.token, self.kept) = (String::new(), self.title);
        self.back_to_checkpoint()
    }

    /// Drops what comes behind the last checkpoint.
    fn back_to_checkpoint(&mut self) -> Result<(), CliError> {
        (self.bytes, self.lines) = self.kept;
        let cut = self.file.flush().and_then(|()| {
            let file = self.file.get_mut();
            file.set_len(self.bytes)?;
            file.seek(SeekFrom::Start(self.bytes)).map(drop)
        });
        cut.map_err(at(&self.path))
    }

    /// Seals the file, and gives it its name once it is on disk.
    pub(super) fn finish(&mut self) -> Result<(), CliError> {
        self.file.flush().map_err(at(&self.path))?;
        let mut file = File::open(&self.path).map_err(at(&self.path))?;
        let sha256 = digest(&mut file, self.bytes).map_err(at(&self.path))?;
        self.write(&TitleItem { item: Some(Item::Seal(Seal { sha256 })) })?;
        // The seal is no item.
        self.lines -= 1;
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(at(&self.path))?;
        fs::rename(&self.path, &self.whole).map_err(at(&self.whole))?;
        let parent = self.whole.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(at(parent))
    }
}

fn check_free(whole: &Path) -> Result<(), CliError> {
    match fs::symlink_metadata(whole) {
        Ok(_) => {
            let message = format!("`{}` is there already; pass another name", whole.display());
            Err(CliError::Usage(message))
        }
        Err(_) => Ok(()),
    }
}

impl Drop for Part {
    /// A part that nothing was written to says nothing.
    fn drop(&mut self) {
        if self.bytes == 0 && self.file.buffer().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The SHA-256 of so many bytes, in hexadecimal digits.
fn digest(file: &mut impl Read, bytes: u64) -> std::io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut rest = bytes;
    let mut buffer = vec![0; 1 << 20];
    while rest > 0 {
        let wanted = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        sha256.update(&buffer[..read]);
        rest -= read as u64;
    }
    Ok(HEXLOWER.encode(&sha256.finalize()))
}

/// The lines of a file.
pub(super) struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    /// Nothing is read from here on.
    end: u64,
    /// Bytes that were read.
    pub(super) bytes: u64,
    /// Lines that were read.
    pub(super) number: u64,
}

// === impl Lines ===

impl Lines {
    /// Opens a file that is whole: its last line is the seal of all the others, which is left out.
    pub(super) fn open_sealed(path: &Path) -> Result<Self, CliError> {
        let mut file = File::open(path).map_err(at(path))?;
        let bytes = file.metadata().map_err(at(path))?.len();
        let tail = bytes.saturating_sub(SEAL_BYTES_MAX);
        let mut end = Vec::new();
        let read = file.seek(SeekFrom::Start(tail)).and_then(|_| file.read_to_end(&mut end));
        read.map_err(at(path))?;
        let before = end.strip_suffix(b"\n").and_then(|it| it.iter().rposition(|b| *b == b'\n'));
        let start = before.map_or(0, |newline| newline + 1);
        let seal = std::str::from_utf8(&end[start..]).ok();
        let seal = seal.and_then(|line| print::from_json::<TitleItem>("TitleItem", line).ok());
        let Some(TitleItem { item: Some(Item::Seal(Seal { sha256 })) }) = seal else {
            let message = format!("`{}` is not whole: its last line is no seal", path.display());
            return Err(CliError::Unsound(message));
        };
        let sealed = tail + start as u64;
        file.rewind().map_err(at(path))?;
        if digest(&mut file, sealed).map_err(at(path))? != sha256 {
            let message = format!("`{}` was changed: its seal is of other lines", path.display());
            return Err(CliError::Unsound(message));
        }
        file.rewind().map_err(at(path))?;
        let file = BufReader::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), file, end: sealed, bytes: 0, number: 0 })
    }

    fn open(path: &Path) -> Result<Self, CliError> {
        let file = File::open(path).map_err(at(path))?;
        let file = BufReader::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), file, end: u64::MAX, bytes: 0, number: 0 })
    }

    /// The next item; `None` at the end of the file.
    pub(super) fn next_item(&mut self) -> Option<Result<TitleItem, CliError>> {
        if self.bytes >= self.end {
            return None;
        }
        let mut line = Vec::new();
        match (&mut self.file).take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(bytes) => self.bytes += bytes as u64,
            Err(source) => return Some(Err(at(&self.path)(source))),
        }
        self.number += 1;
        let item = match line.strip_suffix(b"\n").map(std::str::from_utf8) {
            Some(Ok(line)) => print::from_json("TitleItem", line),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("is cut off, or too long".to_owned()),
        };
        Some(item.map_err(|problem| self.wrong(problem)))
    }

    /// Says what is wrong with the last line.
    pub(super) fn wrong(&self, problem: String) -> CliError {
        self.wrong_at(self.number, problem)
    }

    /// Says what is wrong with a line.
    pub(super) fn wrong_at(&self, line: u64, problem: String) -> CliError {
        CliError::Line { path: self.path.clone(), line, problem }
    }
}

pub(super) async fn import(args: ImportArgs) -> Result<ExitCode, CliError> {
    let bytes = fs::metadata(&args.file).map_err(at(&args.file))?.len();
    let bar = progress::bytes("importing", bytes);
    let mut done = ImportRecordsResponse::default();
    let (mut pauses, mut attempts) = (Pauses::default(), 0);
    loop {
        let before = done.items;
        let lost = match import_once(&args, &mut done, &bar).await {
            Ok(()) => break,
            Err(error) => {
                if done.items > 0 {
                    let line = done.items + 1;
                    progress::tell(&bar, &format!("accolade: items are counted from line {line}"));
                }
                passing(error)?
            }
        };
        attempts = if done.items == before { attempts + 1 } else { 0 };
        if attempts == ATTEMPTS_MAX {
            return Err(lost.into());
        }
        progress::tell(&bar, &format!("accolade: {}; trying again", lost.message()));
        tokio::time::sleep(pauses.next(&lost)).await;
    }
    bar.finish_and_clear();
    let ImportRecordsResponse { items, stored, present, kept } = done;
    say!(
        "{items} items: {stored} stored, {present} there already, {kept} records kept as they are \
         here"
    );
    Ok(ExitCode::SUCCESS)
}

/// Sends the lines that are not dealt with yet.
async fn import_once(
    args: &ImportArgs,
    done: &mut ImportRecordsResponse,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let mut lines = Lines::open_sealed(&args.file)?;
    let (skipped, before) = (done.items, *done);
    for _ in 0..skipped {
        if let Some(Err(error)) = lines.next_item() {
            return Err(error);
        }
    }
    let (sender, requests) = mpsc::channel(LINES_AHEAD);
    let (title, bar) = (args.title.clone(), bar.clone());
    let reading = tokio::task::spawn_blocking(move || send_lines(lines, &title, &sender, &bar));
    let told = async {
        let answers = client.import_records(ReceiverStream::new(requests)).await?;
        let mut answers = answers.into_inner();
        loop {
            let answer = timeout(SILENCE_MAX, answers.message()).await;
            let answer = answer.map_err(|_| Status::unavailable("the server went silent"))??;
            let Some(answer) = answer else { return Ok(()) };
            *done = ImportRecordsResponse {
                items: before.items + answer.items,
                stored: before.stored + answer.stored,
                present: before.present + answer.present,
                kept: before.kept + answer.kept,
            };
        }
    };
    let told: Result<(), CliError> = told.await;
    if told.is_err() && !reading.is_finished() {
        // It may wait for a server that takes nothing any more; it ends with the connection.
        return told;
    }
    // A line that is wrong ends the sending; that says more than what the server made of it.
    let read = reading.await.map_err(|error| CliError::Usage(error.to_string()))?;
    read.and(told)
}

fn send_lines(
    mut lines: Lines,
    title: &str,
    sender: &mpsc::Sender<ImportRecordsRequest>,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let mut is_whole = false;
    while let Some(item) = lines.next_item() {
        let item = item?;
        if is_whole || matches!(item.item, Some(Item::Backup(_))) {
            return Err(lines.wrong("begins another title; restore backups".to_owned()));
        }
        is_whole = matches!(item.item, Some(Item::End(_)));
        bar.set_position(lines.bytes);
        let request = ImportRecordsRequest { title: title.to_owned(), item: Some(item) };
        if sender.blocking_send(request).is_err() {
            // The server has ended the call, and said why.
            return Ok(());
        }
    }
    match is_whole || lines.number == 0 {
        true => Ok(()),
        false => Err(lines.wrong("is the last; the export is not whole".to_owned())),
    }
}

/// Says which file the system refused.
pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> CliError {
    move |source| CliError::File { path: path.to_owned(), source }
}
