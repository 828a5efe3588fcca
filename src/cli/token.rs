//! `accolade token`: makes a token.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::CliError;
use crate::{
    access::{Scope, Tokens, new_token},
    domain::Title,
};

/// Arguments of `token`.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// What to call it, in the file and in messages
    name: String,
    /// A title it is for; may be given more than once [default: every title]
    #[arg(long = "title", value_name = "TITLE", value_parser = title)]
    titles: Vec<Title>,
    /// What it may be used for; may be given more than once: read, write, watch, catalog, admin
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = scope)]
    scopes: Vec<Scope>,
}

fn title(text: &str) -> Result<Title, String> {
    Title::parse(text).map_err(|error| error.to_string())
}

fn scope(text: &str) -> Result<Scope, String> {
    text.parse().map_err(|()| "there are read, write, watch, catalog and admin".to_owned())
}

pub(super) fn token(args: &TokenArgs) -> Result<ExitCode, CliError> {
    let made = new_token();
    let (token, digest) =
        made.map_err(|error| CliError::Usage(format!("no random bytes: {error}")))?;
    let titles = match args.titles.is_empty() {
        true => json!(["*"]),
        false => args.titles.iter().map(Title::as_str).collect(),
    };
    let scopes: serde_json::Value = args.scopes.iter().map(Scope::to_string).collect();
    // Texts and lists of them look alike in JSON and TOML.
    let name = json!(args.name);
    let text = format!(
        "[[tokens]]\nname = {name}\nsha256 = \"{digest}\"\ntitles = {titles}\nscopes = {scopes}\n"
    );
    // The server is to take what is printed here.
    Tokens::parse(&text).map_err(|error| CliError::Usage(error.to_string()))?;
    // Apart from each other, so that `>> tokens.toml` takes the entry only.
    eprintln!("for its owner, who sends it as `authorization: Bearer TOKEN`; shown only now:");
    eprintln!("{token}");
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}
