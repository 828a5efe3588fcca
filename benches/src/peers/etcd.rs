//! etcd: a transaction that compares the key's version and puts.

use std::{path::Path, process::Stdio};

use tokio::process::{Child, Command};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{free_port, make_dir, program, until};
use crate::{
    grpc::connect,
    load::{Caller, Result},
    records::{self, EXTRA, Record, Share, Versions},
};

const CONNECTIONS: usize = 4;

/// The few messages of etcd's API that are needed; numbers as in its `rpc.proto`.
mod messages {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Txn {
        #[prost(message, repeated, tag = "1")]
        pub compare: Vec<Compare>,
        #[prost(message, repeated, tag = "2")]
        pub success: Vec<Op>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Compare {
        /// 0 is "equal".
        #[prost(int32, tag = "1")]
        pub result: i32,
        /// 0 is "the version".
        #[prost(int32, tag = "2")]
        pub target: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub key: Vec<u8>,
        #[prost(int64, optional, tag = "4")]
        pub version: Option<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Op {
        #[prost(message, optional, tag = "2")]
        pub put: Option<Put>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TxnAnswer {
        #[prost(bool, tag = "2")]
        pub succeeded: bool,
    }
}

pub struct Etcd {
    _child: Child,
    url: String,
    versions: Versions,
}

impl Etcd {
    pub async fn start(dir: &Path, records: usize) -> Result<Self> {
        let etcd = program("etcd", &[])?;
        make_dir(dir)?;
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let peer_url = format!("http://127.0.0.1:{}", free_port()?);
        let child = Command::new(etcd)
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(["--log-level", "error", "--quota-backend-bytes", "8000000000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let this = Self { _child: child, url, versions: Versions::new(records, 1) };
        let mut client = until(|| async { this.client().await }).await?;
        let indexes: Vec<u32> = (0..u32::try_from(records)?).collect();
        for part in indexes.chunks(100) {
            let success = part.iter().map(|index| put(*index)).collect();
            transact(&mut client, messages::Txn { compare: Vec::new(), success }).await?;
        }
        Ok(this)
    }

    async fn client(&self) -> Result<Grpc<Channel>> {
        Ok(Grpc::new(connect(&self.url).await?))
    }

    pub async fn setters(&self, in_flight: usize) -> Result<Vec<Setter>> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(self.client().await?);
        }
        let shares = self.versions.shares(in_flight).into_iter().zip(clients.iter().cycle());
        Ok(shares.map(|(share, client)| Setter { client: client.clone(), share }).collect())
    }
}

fn put(index: u32) -> messages::Op {
    let put = messages::Put { key: records::key(index).into(), value: EXTRA.into() };
    messages::Op { put: Some(put) }
}

async fn transact(client: &mut Grpc<Channel>, txn: messages::Txn) -> Result<bool> {
    client.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
    let codec = ProstCodec::<messages::Txn, messages::TxnAnswer>::default();
    let answer = client.unary(tonic::Request::new(txn), path, codec).await?;
    Ok(answer.into_inner().succeeded)
}

pub struct Setter {
    client: Grpc<Channel>,
    share: Share,
}

impl Caller for Setter {
    async fn call(&mut self) -> Result<()> {
        let record @ Record { index, version } = self.share.next();
        let key = records::key(index).into();
        let compare = messages::Compare { result: 0, target: 0, key, version: Some(version) };
        let txn = messages::Txn { compare: vec![compare], success: vec![put(index)] };
        if !transact(&mut self.client, txn).await? {
            return Err("etcd: somebody else wrote".into());
        }
        self.share.wrote(record);
        Ok(())
    }
}
