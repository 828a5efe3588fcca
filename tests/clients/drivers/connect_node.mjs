// A driver: connect-node. Its arguments are the protocol, which is `connect`, `connect-json`,
// `grpc-web` or `grpc`, and the version of HTTP: 1.1 unless given, and always 2 for `grpc`.

import { ADDRESS, MS_MAX, REGISTRY, answered, failed, require, serve } from "./driver.mjs";

const { ConnectError } = require("@connectrpc/connect");
const { createAsyncIterable } = require("@connectrpc/connect/protocol");
const { createConnectTransport, createGrpcTransport, createGrpcWebTransport } =
  require("@connectrpc/connect-node");

const [protocol, httpVersion = "1.1"] = process.argv.slice(2);
const jsonOptions = { registry: REGISTRY };
const OPTIONS = { baseUrl: `http://${ADDRESS}`, httpVersion, jsonOptions };
const TRANSPORT = {
  connect: () => createConnectTransport(OPTIONS),
  "connect-json": () => createConnectTransport({ ...OPTIONS, useBinaryFormat: false }),
  "grpc-web": () => createGrpcWebTransport(OPTIONS),
  grpc: () => createGrpcTransport(OPTIONS),
}[protocol]();

async function call(method, request, take) {
  const ending = new AbortController();
  const timer = setTimeout(() => ending.abort(), MS_MAX);
  const options = [method.descriptor, ending.signal, undefined, undefined];
  try {
    if (!method.isStream) {
      const { message } = await TRANSPORT.unary(...options, request);
      return answered(method, [message]);
    }
    const { message } = await TRANSPORT.stream(...options, createAsyncIterable([request]));
    const found = [];
    for await (const each of message) {
      if (found.push(each) === take) {
        break;
      }
    }
    return answered(method, found);
  } catch (error) {
    const { code, details } = ConnectError.from(error);
    return failed(
      code,
      details.map(({ type, value }) => [type, value]),
    );
  } finally {
    clearTimeout(timer);
    ending.abort();
  }
}

await serve(call);
