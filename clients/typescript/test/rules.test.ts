// The rules by themselves.

import assert from "node:assert/strict";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { Attempts, Pauses, VERSIONS_MAX, Versions, mayPass, newRequestId } from "../src/rules.js";

const never = new AbortController().signal;

function refused(code: Code): ConnectError {
  const error = new ConnectError("", code);
  error.details.push({ desc: ErrorInfoSchema, value: create(ErrorInfoSchema) });
  return error;
}

function toldToWait(ms: number): ConnectError {
  const error = refused(Code.ResourceExhausted);
  const value = create(RetryInfoSchema, { retryDelay: durationFromMs(ms) });
  error.details.push({ desc: RetryInfoSchema, value });
  return error;
}

test("what may pass is tried again, and nothing else", () => {
  const codes = Object.values(Code).filter((code) => typeof code === "number");
  assert.deepEqual(
    codes.filter((code) => mayPass(refused(code))).map((code) => Code[code]),
    ["Canceled", "Unknown", "DeadlineExceeded", "Aborted", "Internal", "Unavailable"],
  );
  assert(mayPass(toldToWait(0)));
  assert(mayPass(new ConnectError("missing EndStreamResponse", Code.InvalidArgument)));
});

test("pauses grow up to a bound, and are longer where the server says so", () => {
  const pauses = new Pauses();
  const all = Array.from({ length: 20 }, () => pauses.after(refused(Code.Unavailable)));
  assert((all[0] ?? 0) >= 25 && (all[0] ?? 0) <= 50);
  assert(all.every((pause) => pause <= 5000));
  assert((all[19] ?? 0) >= 2500);
  assert(new Pauses().after(toldToWait(2000)) >= 2000);
});

test("attempts end before the deadline", async () => {
  const attempts = new Attempts(300);
  const began = performance.now();
  let count = 0;
  const trying = async () => {
    for (;;) {
      await attempts.after(refused(Code.Unavailable), never);
      count++;
    }
  };
  await assert.rejects(trying);
  assert(performance.now() - began <= 5000);
  assert(count >= 1 && count < 12, `${count} attempts`);

  const long = new Attempts(60_000);
  assert.equal(long.timeoutMs(), 3000);
  await assert.rejects(long.after(refused(Code.NotFound), never));
  await assert.rejects(long.after(toldToWait(60_000), never));
  assert.equal(new Attempts(0).timeoutMs(), 1);
});

test("the newest version of a record is kept, and the oldest records are forgotten", () => {
  const versions = new Versions();
  const record = ["t", "p", "n"] as const;
  assert.equal(versions.of(record), 0n);
  versions.saw(record, 3n);
  versions.saw(record, 2n);
  assert.equal(versions.of(record), 3n);
  versions.conflicted(record, 1n);
  assert.equal(versions.of(record), 1n);
  for (let n = 0; n < VERSIONS_MAX; n++) {
    versions.of(record);
    versions.saw(["t", "p", String(n)], 1n);
  }
  assert.equal(versions.of(record), 1n, "it was used");
  assert.equal(versions.of(["t", "p", "0"]), 0n);
  assert.equal(versions.of(["t", "p", "1"]), 1n);
});

test("no two names are alike", () => {
  assert.equal(new Set(Array.from({ length: 1000 }, newRequestId)).size, 1000);
});
