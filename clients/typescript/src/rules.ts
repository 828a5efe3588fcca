// When to try again, under which id, on which version.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { Code, ConnectError } from "@connectrpc/connect";

import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** Default for the milliseconds that a call may take, all its attempts together. */
export const DEADLINE_DEFAULT = 10_000;
/** Milliseconds that one attempt may take, for a connection may have died without a word. */
export const ATTEMPT_MAX = 3_000;
export const PAUSE_MIN = 50;
const PAUSE_MAX = 5_000;
/** Most records whose version is remembered; those not used for long are forgotten. */
export const VERSIONS_MAX = 10_000;

const MAY_PASS: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.Unknown,
  Code.Canceled,
  Code.Aborted,
  Code.DeadlineExceeded,
  Code.Internal,
]);

/** Milliseconds that the server asks to wait. */
function pauseTold(error: ConnectError): number | undefined {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
}

/** Whether trying again can help. */
export function mayPass(error: ConnectError): boolean {
  // The server says why it refuses; without that, the answer was cut off on its way.
  const isCut = error.code === Code.InvalidArgument && error.details.length === 0;
  return MAY_PASS.has(error.code) || isCut || pauseTold(error) !== undefined;
}

/** A name that no other update has. */
export function newRequestId(): string {
  return randomBytes(16).toString("base64url");
}

/** Each is up to twice the one before; between half of it and all of it, by chance. */
export class Pauses {
  #pause = PAUSE_MIN;

  after(error: ConnectError): number {
    const pause = this.#pause * (0.5 + Math.random() / 2);
    this.#pause = Math.min(this.#pause * 2, PAUSE_MAX);
    return pause + (pauseTold(error) ?? 0);
  }
}

/** The attempts of one call. */
export class Attempts {
  readonly #until: number;
  readonly #pauses = new Pauses();

  constructor(deadlineMs: number) {
    this.#until = performance.now() + deadlineMs;
  }

  /** Milliseconds of the next attempt. */
  timeoutMs(): number {
    // 0 would be none.
    return Math.max(1, Math.ceil(Math.min(this.#left(), ATTEMPT_MAX)));
  }

  /** Waits for the next attempt; throws the error where there is none. */
  async after(error: ConnectError, signal: AbortSignal): Promise<void> {
    const pause = this.#pauses.after(error);
    if (!mayPass(error) || pause >= this.#left()) {
      throw error;
    }
    await pauseFor(pause, signal);
  }

  #left(): number {
    return this.#until - performance.now();
  }
}

/** Waits; not longer than until the signal. */
export async function pauseFor(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, { signal });
  } catch {
    // Whoever waits looks at the signal.
  }
}

/** Names a record: title, player, node. */
export type RecordId = readonly [title: string, playerId: string, nodeId: string];

/** The newest version of each record that was seen. */
export class Versions {
  // In the order of their last use.
  readonly #versions = new Map<string, bigint>();

  /** 0 for a record that was not seen. */
  of(record: RecordId): bigint {
    const key = JSON.stringify(record);
    const version = this.#versions.get(key);
    if (version === undefined) {
      return 0n;
    }
    this.#keep(key, version);
    return version;
  }

  /** An older one changes nothing: answers may come in another order than they were made in. */
  saw(record: RecordId, version: bigint): void {
    const key = JSON.stringify(record);
    if (version > (this.#versions.get(key) ?? 0n)) {
      this.#keep(key, version);
    }
  }

  /** After a conflict this is what is stored, be it older: a backup may have been restored. */
  conflicted(record: RecordId, version: bigint): void {
    this.#keep(JSON.stringify(record), version);
  }

  #keep(key: string, version: bigint): void {
    this.#versions.delete(key);
    this.#versions.set(key, version);
    if (this.#versions.size > VERSIONS_MAX) {
      for (const oldest of this.#versions.keys()) {
        this.#versions.delete(oldest);
        break;
      }
    }
  }
}
