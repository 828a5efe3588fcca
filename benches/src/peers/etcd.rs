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
    _children: Vec<Child>,
    urls: Vec<String>,
    versions: Versions,
}

impl Etcd {
    /// A cluster of so many.
    pub async fn start(dir: &Path, records: usize, nodes: usize) -> Result<Self> {
        let etcd = program("etcd", &[])?;
        let ports: Result<Vec<_>> = (0..nodes).map(|_| Ok((free_port()?, free_port()?))).collect();
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        let places: Vec<_> =
            ports?.into_iter().map(|(client, peer)| (local(client), local(peer))).collect();
        let all: Vec<_> =
            places.iter().enumerate().map(|(n, (_, peer))| format!("e{n}={peer}")).collect();
        let mut children = Vec::new();
        for (n, (url, peer)) in places.iter().enumerate() {
            let data = dir.join(format!("e{n}"));
            make_dir(&data)?;
            let child = Command::new(&etcd)
                .arg("--data-dir")
                .arg(data)
                .args(["--name", &format!("e{n}")])
                .args(["--listen-client-urls", url, "--advertise-client-urls", url])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--initial-cluster", &all.join(",")])
                .args(["--log-level", "error", "--quota-backend-bytes", "8000000000"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            children.push(child);
        }
        let urls = places.into_iter().map(|(url, _)| url).collect();
        let this = Self { _children: children, urls, versions: Versions::new(records, 1) };
        let mut client = until(|| async { this.client(0).await }).await?;
        let indexes: Vec<u32> = (0..u32::try_from(records)?).collect();
        for part in indexes.chunks(100) {
            let success: Vec<_> = part.iter().map(|index| put(*index)).collect();
            let txn = || messages::Txn { compare: Vec::new(), success: success.clone() };
            // A cluster that has just been started has no leader yet.
            let client = &mut client;
            match transact(client, txn()).await {
                Ok(_) => {}
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
                    transact(client, txn()).await?;
                }
            }
        }
        Ok(this)
    }

    async fn client(&self, node: usize) -> Result<Grpc<Channel>> {
        Ok(Grpc::new(connect(&self.urls[node % self.urls.len()]).await?))
    }

    pub async fn setters(&self, in_flight: usize) -> Result<Vec<Setter>> {
        let mut clients = Vec::new();
        for connection in 0..CONNECTIONS {
            clients.push(self.client(connection).await?);
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
