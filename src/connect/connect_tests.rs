//! Frames, forms and deadlines of Connect; the door as a whole is tested by real clients.

use bytes::Bytes;
use http::HeaderMap;
use proptest::prelude::*;

use super::{
    Codec, Form, Kind,
    frames::{Frame, Frames, TooLong, frame},
    json, kind, request,
};

#[test]
fn a_request_is_known_by_its_content_type() {
    let kind_of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", text.parse().unwrap());
        kind(&headers)
    };
    let form = |codec, is_stream| Kind::Connect(Form { codec, is_stream });
    assert_eq!(kind_of("application/json"), form(Codec::Json, false));
    assert_eq!(kind_of("application/json; charset=utf-8"), form(Codec::Json, false));
    assert_eq!(kind_of("application/connect+proto"), form(Codec::Proto, true));
    for grpc in ["application/grpc", "application/grpc+proto", "application/grpc-web-text"] {
        assert_eq!(kind_of(grpc), Kind::Grpc);
    }
    assert_eq!(kind_of("text/html"), Kind::Unknown);
    assert_eq!(kind(&HeaderMap::new()), Kind::Unknown);
}

#[test]
fn deadlines_are_read_as_connect_writes_them() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("connect-timeout-ms", text.parse().unwrap());
        request::timeout(&headers).map(|it| it.unwrap().as_millis()).ok()
    };
    assert_eq!(read("0"), Some(0));
    assert_eq!(read("9999999999"), Some(9_999_999_999));
    for wrong in ["", "-1", "+1", "1.5", "10000000000", "1s"] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[test]
fn a_frame_longer_than_allowed_is_refused_before_it_is_there() {
    let mut frames = Frames::default();
    frames.push(&[0, 0, 0, 1, 0]);
    assert_eq!(frames.next(255), Err(TooLong(256)));
    assert_eq!(frames.next(256), Ok(None));
    assert!(frames.is_cut());
}

#[test]
fn json_is_read_and_written_by_proto3s_mapping() {
    let path = "/accolade.v1.AchievementStorageService/SetAchievementStorage";
    let method = json::method(path).unwrap();
    let request = r#"{"title": "t", "player_id": "p", "nodeId": "n", "delta": "9007199254740991"}"#;
    let decode = |text: &str| {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        Codec::Json.decode(&method.input(), bytes)
    };
    let bytes = decode(request).unwrap();
    let back = Codec::Json.encode(&method.input(), bytes).unwrap();
    let back: serde_json::Value = serde_json::from_slice(&back).unwrap();
    assert_eq!(back["delta"], "9007199254740991");
    assert_eq!(back["requestId"], "", "fields at their default are there");
    for wrong in ["", "[]", "{\"delta\": 1.5}", "{\"delt\": 1}", "{} {}", "{\"title\": 7}"] {
        let status = decode(wrong).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{wrong}");
    }
    assert!(json::method("/grpc.health.v1.Health/Check").is_some());
    assert!(json::method("/accolade.v1.AchievementStorageService/No").is_none());
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
        messages in proptest::collection::vec((any::<u8>(), "\\PC{0,40}"), 0..8),
        cut in 1..50usize,
    ) {
        let framed = messages.iter().map(|(flags, text)| frame(*flags, text.as_bytes()));
        let bytes: Vec<u8> = framed.flatten().collect();
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(cut) {
            frames.push(piece);
            while let Some(Frame { flags, message }) = frames.next(1000).unwrap() {
                found.push((flags, String::from_utf8(message.to_vec()).unwrap()));
            }
        }
        prop_assert!(!frames.is_cut());
        prop_assert_eq!(found, messages);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let path = "/accolade.v1.CompletionService/WatchCompletions";
        let input = json::method(path).unwrap().input();
        let _ = Codec::Json.decode(&input, bytes.clone().into());
        let mut frames = Frames::default();
        frames.push(&bytes);
        while let Ok(Some(_)) = frames.next(100) {}
    }
}
