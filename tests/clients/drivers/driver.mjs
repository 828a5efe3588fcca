// What the drivers on Node.js share; driver.py says what a driver does.

import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const PACKAGE = new URL("../../../clients/typescript/", import.meta.url);

/** The packages are those of the TypeScript client. */
export const require = createRequire(PACKAGE);

const { createFileRegistry, createRegistry, fromBinary, fromJson, toJson } =
  require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { status } = require("@grpc/grpc-js");

export const ADDRESS = process.env["ACCOLADE_ADDRESS"];

/** No call of the table takes so long. */
export const MS_MAX = 30_000;

function descriptors(folder) {
  const buf = fileURLToPath(new URL("node_modules/.bin/buf", PACKAGE));
  const proto = fileURLToPath(new URL(folder, PACKAGE));
  return execFileSync(buf, ["build", "--as-file-descriptor-set", "-o", "-", proto]);
}

/** The descriptors of the API. */
export const API = descriptors("../../proto");

/** The messages of the API, and those of errors. */
export const REGISTRY = createRegistry(
  ...[API, descriptors("proto")].map((it) =>
    createFileRegistry(fromBinary(FileDescriptorSetSchema, it)),
  ),
);

/** A method and its messages as the table has them. */
class Method {
  constructor(path) {
    [this.service, this.name] = path.split("/");
    const service = REGISTRY.getService(this.service);
    this.descriptor = service.methods.find((it) => it.name === this.name);
    this.isStream = ["server_streaming", "bidi_streaming"].includes(this.descriptor.methodKind);
  }

  request(fields) {
    return fromJson(this.descriptor.input, fields, { registry: REGISTRY });
  }

  /** Every field, the defaults too, under the names of the `.proto` files. */
  json(message) {
    const options = { registry: REGISTRY, alwaysEmitImplicit: true, useProtoFieldName: true };
    return toJson(this.descriptor.output, message, options);
  }
}

/** The messages of a call that did not fail. */
export function answered(method, messages) {
  const found = messages.map((it) => method.json(it));
  return method.isStream ? { responses: found } : { response: found[0] };
}

/** The error of a call; `details` are pairs of a type's name and its bytes. */
export function failed(code, details) {
  const error = { code: status[code], reason: "", fields: [] };
  for (const [name, value] of details) {
    const detail = () => fromBinary(REGISTRY.getMessage(name), value);
    if (name === "google.rpc.ErrorInfo") {
      error.reason = detail().reason;
    }
    if (name === "google.rpc.BadRequest") {
      error.fields = detail().fieldViolations.map((it) => it.field).sort();
    }
  }
  return { error };
}

/** Answers each line with `call(method, request, take)`. */
export async function serve(call) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { method: path, request, take } = JSON.parse(line);
    const method = new Method(path);
    const answer = await call(method, method.request(request), take);
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}
