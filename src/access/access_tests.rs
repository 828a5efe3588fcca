//! Tokens, scopes, quotas, and what a change of the file does to who is inside.

use std::num::NonZeroU32;

use super::*;
use crate::testing::title;

fn entry(name: &str, token: &str, rest: &str) -> String {
    let digest = Digest::of(token.as_bytes());
    format!("[[tokens]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n{rest}\n")
}

const ALL: &str = "titles = [\"*\"]\nscopes = [\"read\", \"write\", \"watch\"]";

fn access(text: &str) -> Access {
    Access::new(Some(Tokens::parse(text).unwrap()), Quota::default())
}

fn enter(access: &Access, token: &str) -> Result<Caller, AccessError> {
    access.authenticate(Some(format!("Bearer {token}").as_bytes()))
}

const ONE: Cost = Cost { requests: 1, bytes: 100 };

#[test]
fn without_tokens_everybody_may_do_everything() {
    let access = Access::new(None, Quota::default());
    let caller = access.authenticate(None).unwrap();
    assert_eq!(caller.authorize(&title("any"), Scope::Admin, ONE), Ok(()));
    assert!(caller.sees(&title("any")) && caller.revoked().is_none());
}

#[test]
fn only_a_whole_token_gets_in() {
    let access = access(&entry("a", "secret", ALL));
    let refused = |authorization: &[u8]| access.authenticate(Some(authorization)).unwrap_err();
    assert_eq!(access.authenticate(None).unwrap_err(), AccessError::TokenMissing);
    for missing in [&b""[..], b"Bearer", b"secret", b"Basic secret", b"\xff"] {
        assert_eq!(refused(missing), AccessError::TokenMissing, "{missing:?}");
    }
    for unknown in [&b"Bearer "[..], b"Bearer secre", b"Bearer secret ", b"Bearer \xff"] {
        assert_eq!(refused(unknown), AccessError::TokenUnknown, "{unknown:?}");
    }
    for right in ["Bearer secret", "bearer secret", "BEARER secret"] {
        assert!(access.authenticate(Some(right.as_bytes())).is_ok());
    }
}

#[test]
fn a_token_is_good_for_its_titles_and_scopes_only() {
    let rest = "titles = [\"mine\"]\nscopes = [\"read\", \"watch\"]";
    let access = access(&entry("a", "t", rest));
    let caller = enter(&access, "t").unwrap();
    for scope in [Scope::Read, Scope::Watch] {
        assert_eq!(caller.authorize(&title("mine"), scope, ONE), Ok(()));
    }
    for (id, scope) in [("mine", Scope::Write), ("other", Scope::Read), ("*", Scope::Read)] {
        let refused = AccessError::Forbidden { title: title(id), scope };
        assert_eq!(caller.authorize(&title(id), scope, ONE), Err(refused));
    }
    assert!(caller.sees(&title("mine")) && !caller.sees(&title("other")));
}

#[test]
fn a_changed_file_puts_out_who_is_gone_or_changed_and_nobody_else() {
    let text = ["same", "gone", "changed"].map(|name| entry(name, name, ALL)).concat();
    let access = access(&text);
    let [same, gone, changed] = ["same", "gone", "changed"].map(|it| enter(&access, it).unwrap());
    let less = "titles = [\"*\"]\nscopes = [\"read\"]";
    let text = entry("changed", "changed", less) + &entry("new", "new", ALL);
    access.replace(Tokens::parse(&(text + &entry("same", "same", ALL))).unwrap());

    let authorize = |caller: &Caller| caller.authorize(&title("t"), Scope::Write, ONE);
    assert_eq!(authorize(&same), Ok(()));
    for caller in [&gone, &changed] {
        assert_eq!(authorize(caller), Err(AccessError::Revoked));
        assert!(caller.revoked().unwrap().is_cancelled());
    }
    assert_eq!(enter(&access, "gone").unwrap_err(), AccessError::TokenUnknown);
    let refused = AccessError::Forbidden { title: title("t"), scope: Scope::Write };
    assert_eq!(authorize(&enter(&access, "changed").unwrap()), Err(refused));
    assert_eq!(authorize(&enter(&access, "new").unwrap()), Ok(()));
}

#[test]
fn a_rate_lets_a_seconds_worth_through_and_says_when_more_fits() {
    let rest = format!("{ALL}\nrequests_per_second = 100");
    let access = access(&entry("a", "t", &rest));
    let caller = enter(&access, "t").unwrap();
    let batch = Cost { requests: 20, bytes: 1 };
    for _ in 0..5 {
        assert_eq!(caller.authorize(&title("t"), Scope::Write, batch), Ok(()));
    }
    // One more fits where a fifth of a second has gone by already, and so on.
    let refused = (0..100).find_map(|_| caller.authorize(&title("t"), Scope::Write, batch).err());
    let Some(AccessError::QuotaExceeded { whose, what, retry_after }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((whose.to_string().as_str(), what), ("token \"a\"", "requests"));
    assert!(retry_after.as_millis() <= 200, "{retry_after:?}");
    // What is forbidden costs nothing, and is told first.
    let refused = caller.authorize(&title("t"), Scope::Admin, batch).unwrap_err();
    assert!(matches!(refused, AccessError::Forbidden { .. }));
}

#[test]
fn titles_do_not_use_up_each_others_quota() {
    let quota = Quota {
        request_bytes_per_second: NonZeroU32::new(BYTES_PER_SECOND_MIN),
        streams_max: NonZeroU32::new(2),
        ..Quota::default()
    };
    let access = Access::new(None, quota);
    let all = Cost { requests: 1, bytes: BYTES_PER_SECOND_MIN as usize };
    assert_eq!(access.charge(&title("a"), all), Ok(()));
    assert!((0..100).any(|_| access.charge(&title("a"), all).is_err()));
    assert_eq!(access.charge(&title("b"), all), Ok(()));

    let caller = access.authenticate(None).unwrap();
    let open = |id| access.open_stream(&caller, Some(&title(id)));
    let (first, _second) = (open("a").unwrap(), open("a").unwrap());
    assert!(matches!(open("a"), Err(AccessError::StreamsExhausted { max: 2, .. })));
    assert!(open("b").is_ok());
    drop(first);
    assert!(open("a").is_ok(), "a place is given back, and a refused one is not kept");
    assert!(open("a").is_ok());
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let text = format!(
        "other = 1\n{}{}{}",
        entry("a", "t", "titles = [\"*\", \"x\"]\nscopes = [\"fly\"]\nrequests_per_second = 5"),
        entry("a", "t", "titles = []\nscopes = 7\ncolour = 1\nstreams_max = -1"),
        "[[tokens]]\nname = \"\"\nsha256 = \"00\"\ntitles = [\"\"]\nscopes = [\"read\"]"
    );
    let error = Tokens::parse(&text).unwrap_err().to_string();
    for part in [
        "`other`",
        "tokens[0]: `titles` has \"*\" beside others",
        "\"fly\"; there are read, write, watch, catalog, admin",
        "`requests_per_second` must be 100 or more",
        "tokens[1]: the name \"a\" is there twice",
        "the same token is there twice",
        "`titles` must be a list",
        "`scopes` must be a list",
        "`colour`",
        "`streams_max` must be 1 or more",
        "tokens[2]: `name` must be a text of 1 to 64 bytes",
        "`sha256` must be 64 hexadecimal digits",
        "must not be empty",
    ] {
        assert!(error.contains(part), "{part} is missing from:\n{error}");
    }
    assert!(Tokens::parse("").unwrap_err().to_string().contains("write 1 to 1000"));
    assert!(Tokens::parse("[[").unwrap_err().to_string().contains("not TOML"));
}

#[test]
fn made_tokens_differ_and_their_digests_are_not_shown_by_debug() {
    let (first, second) = (new_token().unwrap(), new_token().unwrap());
    assert!(first.0 != second.0 && first.0.len() == 43);
    assert_eq!(Digest::of(first.0.as_bytes()), first.1);
    let access = access(&entry("a", &first.0, ALL));
    let shown = format!("{:?}", enter(&access, &first.0).unwrap());
    assert!(!shown.contains(&first.0) && !shown.contains(&first.1.to_string()), "{shown}");
}
