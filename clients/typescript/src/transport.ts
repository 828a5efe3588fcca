// How messages reach the server.

import * as http from "node:http";
import * as https from "node:https";
import type { SecureContextOptions } from "node:tls";

import type { Interceptor, Transport } from "@connectrpc/connect";
import {
  Http2SessionManager,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";

/** What is spoken with the server. */
export type Protocol = "grpc" | "grpc-web" | "connect";

/** The HTTP below it. */
export type HttpVersion = "1.1" | "2";

export interface ConnectionOptions {
  baseUrl: string;
  protocol: Protocol;
  httpVersion: HttpVersion;
  token: string | undefined;
  tls: SecureContextOptions;
}

export interface Connection {
  transport: Transport;
  close(): void;
}

/** The server's answers may hold so much: 256 records with the largest extras. */
const ANSWER_BYTES_MAX = 64 << 20;

/** A connection over HTTP/2 that went silent is noticed within 30 s. */
const PINGS = { pingIntervalMs: 20_000, pingTimeoutMs: 10_000, pingIdleConnection: true };

/** Connects with the first call, and again whenever the connection is lost. */
export function connect(options: ConnectionOptions): Connection {
  const { baseUrl, protocol, httpVersion, token, tls } = options;
  const interceptors = token === undefined ? [] : [withToken(token)];
  const common = { baseUrl, interceptors, readMaxBytes: ANSWER_BYTES_MAX };
  if (protocol === "grpc" || httpVersion === "2") {
    const sessionManager = new Http2SessionManager(baseUrl, PINGS, tls);
    const over2 = { ...common, sessionManager, httpVersion: "2" as const };
    const create = {
      grpc: () => createGrpcTransport({ ...common, sessionManager }),
      "grpc-web": () => createGrpcWebTransport(over2),
      connect: () => createConnectTransport(over2),
    }[protocol];
    return { transport: create(), close: () => sessionManager.abort() };
  }
  const isTls = new URL(baseUrl).protocol === "https:";
  const agent = new (isTls ? https : http).Agent({ keepAlive: true });
  const over1 = { ...common, httpVersion, nodeOptions: { ...tls, agent } };
  const create = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  return { transport: create(over1), close: () => agent.destroy() };
}

function withToken(token: string): Interceptor {
  const value = `Bearer ${token.trim()}`;
  return (next) => (request) => {
    request.header.set("authorization", value);
    return next(request);
  };
}
