//! `accolade backup` and `accolade restore`.

use std::{collections::BTreeSet, fs, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;

use super::{
    CliError,
    connect::ServerArgs,
    progress,
    transfer::{Lines, Part, at, export_title},
};
use crate::{
    clock::SystemClock,
    domain::Title,
    proto::v1::{
        Backup, ListTitlesRequest, TitleItem, catalog_service_client::CatalogServiceClient,
        title_item::Item,
    },
    service::{Piece, piece},
    store::{ImportError, Store, Times, sled::Restoration, transfer::Item as Stored},
};

/// Items that are stored together.
const STEP_ITEMS: usize = 512;

/// Page cache while restoring.
const CACHE_BYTES: u64 = 256 << 20;

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The file to write; until it is whole, it has the ending `.part`
    file: PathBuf,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// A file of `backup`
    file: PathBuf,
    /// The data folder to make; until it is whole, it has the ending `.restoring`
    dir: PathBuf,
}

pub(super) async fn backup(args: BackupArgs) -> Result<ExitCode, CliError> {
    let mut client = CatalogServiceClient::new(args.server.connect().await?);
    let listed = client.list_titles(ListTitlesRequest {}).await?.into_inner();
    if !listed.complete {
        let message =
            "the token does not see every title; a backup needs one with titles = [\"*\"]";
        return Err(CliError::Usage(message.to_owned()));
    }
    let titles: Vec<_> = listed.titles.into_iter().map(|summary| summary.title).collect();
    let mut part = Part::create(&args.file)?;
    let bar = progress::rows("backing up");
    let header = Item::Backup(Backup { titles: titles.clone() });
    part.write(&TitleItem { item: Some(header) })?;
    for title in &titles {
        part.begin_title();
        export_title(&args.server, title, &mut part, &bar).await?;
    }
    part.finish()?;
    bar.finish_and_clear();
    let (items, titles) = (part.lines, titles.len());
    say!("{titles} titles, {items} items in `{}`", args.file.display());
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(args: RestoreArgs) -> Result<ExitCode, CliError> {
    let unsound = |error: crate::store::sled::OpenError| CliError::Unsound(error.to_string());
    let bytes = fs::metadata(&args.file).map_err(at(&args.file))?.len();
    let mut lines = Lines::open_sealed(&args.file)?;
    let header = lines.next_item().transpose()?.and_then(|item| item.item);
    let Some(Item::Backup(Backup { titles })) = header else {
        return Err(
            lines.wrong("is not the first line of a backup; exports are imported".to_owned())
        );
    };
    let expected: BTreeSet<_> = titles.into_iter().collect();
    let clock = Arc::new(SystemClock);
    let restoration = Restoration::begin(&args.dir, CACHE_BYTES, clock).map_err(unsound)?;
    let bar = progress::bytes("restoring", bytes);
    let mut reader = Reader { lines, store: restoration.store(), titles: Vec::new(), store_id: 0 };
    while let Some(item) = reader.lines.next_item() {
        bar.set_position(reader.lines.bytes);
        reader.title(item?).await?;
    }
    let Reader { lines, store, titles, store_id } = reader;
    drop(store);
    let found: BTreeSet<_> = titles.iter().map(|title| title.as_str().to_owned()).collect();
    if found != expected {
        return Err(lines.wrong("is the last; the backup is not whole".to_owned()));
    }
    bar.finish_and_clear();
    let bar = progress::rows("verifying");
    let mut told = |rows| bar.set_position(rows);
    let report = restoration.finish(store_id, titles, &mut told).await.map_err(unsound)?;
    bar.finish_and_clear();
    say!(
        "restored {} titles, {} records, {} events in `{}`",
        report.titles,
        report.records,
        report.events,
        args.dir.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Reads titles from a backup into a store.
struct Reader {
    lines: Lines,
    store: Arc<dyn Store>,
    /// Those that are whole.
    titles: Vec<Title>,
    /// The store that they come from.
    store_id: u64,
}

impl Reader {
    /// Stores a title whose export begins with this item.
    async fn title(&mut self, start: TitleItem) -> Result<(), CliError> {
        let Some(Item::Start(it)) = &start.item else {
            return Err(self.lines.wrong("does not begin a title".to_owned()));
        };
        let title = Title::parse(&it.title);
        let title = title.map_err(|error| self.lines.wrong(format!("`title` {error}")))?;
        let Piece::Start { catalog, store_id, item } = self.piece(start, &title)? else {
            return Err(self.lines.wrong("does not begin a title".to_owned()));
        };
        self.store_id = store_id;
        let made = self.store.replace_catalog(&title, 0, Arc::new(catalog)).await;
        made.map_err(|error| self.lines.wrong(error.to_string()))?;
        let mut step = vec![(self.lines.number, item)];
        loop {
            let Some(item) = self.lines.next_item() else {
                return Err(self.lines.wrong("is the last; its title is not whole".to_owned()));
            };
            let piece = self.piece(item?, &title)?;
            match piece {
                Piece::Item(item) => step.push((self.lines.number, item)),
                Piece::Nothing => {}
                Piece::End => {
                    self.import(&title, step).await?;
                    self.titles.push(title);
                    return Ok(());
                }
                Piece::Start { .. } => {
                    return Err(self.lines.wrong("begins a title inside another".to_owned()));
                }
            }
            if step.len() >= STEP_ITEMS {
                self.import(&title, std::mem::take(&mut step)).await?;
            }
        }
    }

    fn piece(&self, item: TitleItem, title: &Title) -> Result<Piece, CliError> {
        piece(item, title).map_err(|problem| self.lines.wrong(problem))
    }

    /// Stores items, each with the line it stands in.
    async fn import(&self, title: &Title, step: Vec<(u64, Stored)>) -> Result<(), CliError> {
        let (mut numbers, mut items): (Vec<_>, Vec<_>) = step.into_iter().unzip();
        while !items.is_empty() {
            match self.store.import(title, items, Times::Trusted).await {
                Ok((_, rest)) => {
                    numbers.drain(..numbers.len() - rest.len());
                    items = rest;
                }
                Err(ImportError::Refused { index, problem }) => {
                    return Err(self.lines.wrong_at(numbers[index], problem));
                }
                Err(error) => return Err(self.lines.wrong(error.to_string())),
            }
        }
        Ok(())
    }
}
