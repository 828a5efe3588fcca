// The client on the real server: ACCOLADE_ADDRESS says where it is, ACCOLADE_PROTOCOL what to speak.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { afterEach, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  CONFLICT,
  CONFLICTS_MAX,
  Client,
  type ClientOptions,
  Code,
  ConnectError,
  ErrorInfoSchema,
  type HttpVersion,
  type Protocol,
  type RecordState,
  RetryInfoSchema,
  STORED,
  type WatchOptions,
} from "../src/index.js";
import { LossyProxy } from "./proxy.js";

const ADDRESS = process.env["ACCOLADE_ADDRESS"] ?? "127.0.0.1:50151";
const URL = `http://${ADDRESS}`;
const PROTOCOL = (process.env["ACCOLADE_PROTOCOL"] ?? "grpc") as Protocol;
const HTTP_VERSION = (process.env["ACCOLADE_HTTP_VERSION"] ?? "1.1") as HttpVersion;
/** A refused request tells to wait above so many of a title in a second. */
const QUOTA = Number(process.env["ACCOLADE_TITLE_REQUESTS_PER_SECOND_MAX"]);

let title: string;
let ends: { close(): void }[];

beforeEach(async () => {
  title = randomUUID();
  ends = [];
  const definitions = [
    { nodeId: "counter", maxProgress: 1n << 40n },
    { nodeId: "once", maxProgress: 1n },
  ];
  await client().catalog.applyCatalog({ title, definitions });
});

afterEach(() => {
  for (const end of ends) {
    end.close();
  }
});

function client(options: ClientOptions = {}): Client {
  const made = new Client({
    baseUrl: URL,
    protocol: PROTOCOL,
    httpVersion: HTTP_VERSION,
    ...options,
  });
  ends.push(made);
  return made;
}

async function proxy(): Promise<LossyProxy> {
  const made = await LossyProxy.before(ADDRESS);
  ends.push(made);
  return made;
}

async function first(count: number, of: Client, options: WatchOptions = {}): Promise<string[]> {
  const found: string[] = [];
  for await (const completion of of.watch(title, options)) {
    found.push(completion.playerId);
    if (found.length === count) {
      break;
    }
  }
  return found;
}

function has(code: Code, reason?: string) {
  return (error: unknown) => {
    assert(error instanceof ConnectError, String(error));
    assert.equal(Code[error.code], Code[code]);
    const [info] = error.findDetails(ErrorInfoSchema);
    assert.equal(info?.reason, reason);
    assert.equal(info?.domain, reason && "accolade");
    return true;
  };
}

const never = (stored: RecordState): boolean => assert.fail(`nothing conflicts: ${stored}`);

test("records are read as they were stored", async () => {
  const it = client();
  assert.deepEqual(await it.get(title, "1"), []);
  const stored = await it.set({
    title,
    playerId: "1",
    nodeId: "counter",
    change: { case: "atLeast", value: 9007199254740991n },
  });
  assert.deepEqual([stored.code, stored.updated?.progress], [STORED, 1n << 40n]);
  assert.equal(stored.newlyCompleted, true);
  await it.add(title, "1", "once", 1n);
  assert.deepEqual(
    (await it.get(title, "1")).map((record) => [record.achievementId, record.version]),
    [
      ["counter", 1n],
      ["once", 1n],
    ],
  );
  assert.equal((await it.get(title, "1", ["once"])).length, 1);
});

test("additions of many at once are all counted", async () => {
  const it = client({ deadlineMs: 60_000 });
  // Fewer to one record than it remembers, should some be asked for once more.
  const players = Array.from({ length: 10 }, (_, n) => String(n));
  const additions = players.flatMap((player) => Array.from({ length: 5 }, () => player));
  await Promise.all(additions.map((player) => it.add(title, player, "counter", 2n)));
  for (const player of players) {
    const [record] = await it.get(title, player);
    assert.deepEqual([record?.progress, record?.version], [10n, 5n]);
  }
});

test("a text meets a conflict and the caller decides", async () => {
  const [one, two] = [client(), client()];
  await one.add(title, "1", "counter", 1n, { extra: () => "a", onConflict: never });
  const second = { extra: () => "b", onConflict: never };
  assert.equal((await one.add(title, "1", "counter", 1n, second)).updated?.version, 2n);

  const texts = ["c1", "c2"];
  const told: unknown[] = [];
  const merged = await two.add(title, "1", "counter", 10n, {
    extra: () => texts.shift() ?? assert.fail(),
    onConflict: (stored) => {
      told.push([stored.version, stored.progress, stored.extra]);
      return true;
    },
  });
  assert.deepEqual(
    [merged.code, merged.updated?.progress, merged.updated?.extra],
    [STORED, 12n, "c2"],
  );
  assert.deepEqual(told, [[2n, 2n, "b"]]);

  const left = { extra: () => "d", onConflict: () => false };
  const answer = await one.add(title, "1", "counter", 100n, left);
  assert.deepEqual([answer.code, answer.entity?.version], [CONFLICT, 3n]);
  const [record] = await one.get(title, "1");
  assert.deepEqual([record?.progress, record?.version], [12n, 3n]);
  await one.add(title, "1", "counter", 1n, { extra: () => "e", onConflict: never });
});

test("conflicts without end are given up", async () => {
  const [it, other] = [client({ deadlineMs: 120_000 }), client({ deadlineMs: 120_000 })];
  const asked: bigint[] = [];
  const answer = await it.add(title, "1", "counter", 1n, {
    extra: async () => {
      await other.add(title, "1", "counter", 1n);
      return "";
    },
    onConflict: (stored) => asked.push(stored.version) > 0,
  });
  assert.deepEqual([answer.code, asked.length], [CONFLICT, CONFLICTS_MAX]);
});

test("an addition whose answer is lost is counted once", async () => {
  const lossy = await proxy();
  const [it, direct] = [client({ baseUrl: lossy.url, deadlineMs: 30_000 }), client()];
  assert.deepEqual(await it.get(title, "1"), []);
  lossy.loses = true;
  const adding = it.add(title, "1", "counter", 1n);
  while ((await direct.get(title, "1")).length === 0) {
    await sleep(10);
  }
  lossy.loses = false;
  lossy.cut();
  assert.equal((await adding).replayed, true);
  const [record] = await direct.get(title, "1");
  assert.deepEqual([record?.progress, record?.version], [1n, 1n]);
});

test("a storm of cuts loses and doubles nothing", async () => {
  const lossy = await proxy();
  const it = client({ baseUrl: lossy.url, deadlineMs: 60_000 });
  const cutting = setInterval(() => lossy.cut(), 100);
  let [added, replayed] = [0n, 0];
  try {
    // Until some were stored whose answers were cut off.
    while (added < 60n || (replayed === 0 && added < 2000n)) {
      const answer = await it.add(title, "1", "counter", 1n);
      replayed += answer.replayed ? 1 : 0;
      added += 1n;
    }
  } finally {
    clearInterval(cutting);
  }
  const [record] = await client().get(title, "1");
  assert.deepEqual([record?.progress, record?.version], [added, added]);
  assert(replayed > 0, "no answer was cut off");
});

test("a set keeps the name that it is given", async () => {
  const it = client();
  const change = { case: "delta" as const, value: 1n };
  const request = { title, playerId: "1", nodeId: "counter", change, requestId: "this" };
  assert.equal((await it.set(request)).replayed, false);
  assert.equal((await it.set(request)).replayed, true);
  request.requestId = "";
  assert.equal((await it.set(request)).replayed, false);
  assert.equal((await it.set(request)).replayed, false);
  assert.equal(request.requestId, "", "the caller's message is left as it is");
  const named = { requestId: "that" };
  assert.equal((await it.add(title, "1", "counter", 1n, named)).replayed, false);
  assert.equal((await it.add(title, "1", "counter", 1n, named)).replayed, true);
});

test("a watch goes on over connections that are cut", async () => {
  const lossy = await proxy();
  const direct = client();
  const completed: string[] = [];
  const following = first(60, client({ baseUrl: lossy.url }), { after: "" });
  for (let n = 0; n < 60; n++) {
    const player = `player ${n}`;
    assert.equal((await direct.add(title, player, "once", 1n)).newlyCompleted, true);
    completed.push(player);
    if (n % 15 === 7) {
      lossy.cut();
    }
  }
  assert.deepEqual(await following, completed);
});

test("a watch from now on tells of what comes, over a cut as well", async () => {
  const lossy = await proxy();
  const [it, direct] = [client({ baseUrl: lossy.url }), client()];
  await direct.add(title, "before", "once", 1n);
  const watch = it.watch(title);
  const next = watch.next();
  let heard: string | undefined;
  void next.then(({ value }) => (heard = value?.playerId));
  // When it began, nobody is told; whoever completes after that is the first.
  for (let n = 0; heard === undefined; n++) {
    await direct.add(title, `after ${n}`, "once", 1n);
    await sleep(20);
  }
  assert.match(heard, /^after /);
  lossy.cut();
  await direct.add(title, "last", "once", 1n);
  for await (const completion of watch) {
    assert.match(completion.playerId, /^(after|last)/);
    if (completion.playerId === "last") {
      break;
    }
  }
});

test("a watch tells of whom it is asked", async () => {
  const it = client();
  for (const player of ["a", "b", "c"]) {
    await it.add(title, player, "once", 1n);
  }
  const asked = { after: "", playerIds: ["a", "c"], achievementIds: ["once"] };
  assert.deepEqual(await first(2, it, asked), ["a", "c"]);
  for await (const { cursor } of it.watch(title, { after: "", playerIds: ["a"] })) {
    assert.deepEqual(await first(1, it, { after: cursor }), ["b"]);
    break;
  }
});

test("resets are told to whoever asks", async () => {
  const it = client();
  await it.add(title, "a", "once", 1n);
  await it.admin.resetAchievement({ title, playerId: "a", nodeId: "once", reason: "refunded" });
  await it.add(title, "a", "once", 1n);
  const found: string[] = [];
  for await (const event of it.watchEvents(title, { after: "" })) {
    found.push(event.$typeName === "accolade.v1.Reset" ? event.reason : String(event.version));
    if (found.length === 3) {
      break;
    }
  }
  assert.deepEqual(found, ["1", "refunded", "3"]);
  assert.deepEqual(await first(2, it, { after: "" }), ["a", "a"]);
});

test("a watch ends with its signal, and with its client", async () => {
  const it = client();
  const ending = new AbortController();
  const watches = [it.watch(title, { signal: ending.signal }), it.watch(title)];
  const [signalled, closed] = watches.map((watch) => watch.next());
  await sleep(100);
  ending.abort();
  assert.equal((await signalled)?.done, true);
  it.close();
  assert.equal((await closed)?.done, true);
  await assert.rejects(it.get(title, "1"), has(Code.Canceled));
});

test("what does not pass is told at once, with its reason", async () => {
  const it = client({ deadlineMs: 600_000 });
  await assert.rejects(it.add(title, "1", "?", 1n), has(Code.NotFound, "NODE_NOT_FOUND"));
  await assert.rejects(it.get("?", "1"), has(Code.NotFound, "TITLE_NOT_FOUND"));
  const invalid = has(Code.InvalidArgument, "FIELD_INVALID");
  await assert.rejects(it.add(title, "", "counter", 1n), invalid);
  await assert.rejects(first(1, it, { after: "?" }), invalid);
  await assert.rejects(it.add(title, "1", "counter", 1n << 64n), /int64/);
});

test("an answer that does not come is not waited for beyond the deadline", async () => {
  const lossy = await proxy();
  lossy.loses = true;
  for (const baseUrl of [lossy.url, "http://127.0.0.1:9"]) {
    const began = performance.now();
    await assert.rejects(client({ baseUrl, deadlineMs: 500 }).get(title, "1"), (error) => {
      assert(error instanceof ConnectError);
      const codes = [Code.DeadlineExceeded, Code.Unavailable];
      assert(codes.includes(error.code), String(error));
      return true;
    });
    const took = performance.now() - began;
    // Three pauses at the least, drawn from ranges that begin at 25, 50 and 100 ms.
    assert(took > 100 && took < 10_000, `${baseUrl}: ${took} ms`);
  }
});

test("over a quota it waits as long as it is told", { skip: !QUOTA }, async () => {
  const it = client({ deadlineMs: 30_000 });
  const ask = async () => {
    try {
      await it.storage.getAchievementStorage({ title, playerId: "1" });
      return [];
    } catch (error) {
      has(Code.ResourceExhausted, "QUOTA_EXCEEDED")(error);
      return ConnectError.from(error).findDetails(RetryInfoSchema);
    }
  };
  let told: Awaited<ReturnType<typeof ask>> = [];
  for (let round = 0; told.length === 0; round++) {
    assert(round < 20, "some are refused");
    told = (await Promise.all(Array.from({ length: 4 * QUOTA }, ask))).flat();
  }
  assert(told.every(({ retryDelay }) => retryDelay !== undefined));
  const gets = Array.from({ length: 2 * QUOTA }, () => it.get(title, "1"));
  assert.deepEqual(new Set((await Promise.all(gets)).map((got) => got.length)), new Set([0]));
});

test("every service is there as it is", async () => {
  const it = client();
  const { titles } = await it.catalog.listTitles({});
  assert(titles.some((each) => each.title === title && each.nodeCount === 2));
  const { revision } = await it.catalog.getCatalog({ title });
  assert.equal(revision, 1n);
  await it.add(title, "1", "once", 1n);
  const { completions } = await it.completion.listCompletions({ title });
  assert.deepEqual(
    completions.map((each) => [each.playerId, each.achievementId, each.progress]),
    [["1", "once", 1n]],
  );
});
