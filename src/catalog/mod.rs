//! Catalogues: file formats in, one live catalogue a title out.
//!
//! `source` is what all formats have in common, a list of entries whose fields know their lines;
//! `toml`, `json`, `netease_csv` and `netease_folder` make entries; `load` picks the format and
//! makes drafts of entries; `Catalogs` holds what is live.

mod json;
mod live;
mod load;
mod netease_csv;
mod netease_folder;
mod source;
mod toml;

pub use live::{Applied, Catalogs};
pub use load::{demo, load};
pub use source::CatalogFileError;

#[cfg(test)]
mod fuzz_tests;
