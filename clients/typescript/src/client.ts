// The client.

import { setMaxListeners } from "node:events";
import type { SecureContextOptions } from "node:tls";

import {
  type DescMessage,
  type MessageInitShape,
  type MessageShape,
  clone,
  create,
  toBinary,
} from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, Code, ConnectError, createClient } from "@connectrpc/connect";
import type { Client as ServiceClient } from "@connectrpc/connect";

import { AdminService } from "./gen/accolade/v1/admin_pb.js";
import { CatalogService } from "./gen/accolade/v1/catalog_pb.js";
import {
  type Completion,
  CompletionService,
  type Reset,
  WatchCompletionsRequestSchema,
} from "./gen/accolade/v1/completion_pb.js";
import {
  AchievementStorageService,
  GetAchievementStorageRequestSchema,
  type Record,
  type RecordState,
  RecordStateSchema,
  type SetAchievementStorageRequest,
  SetAchievementStorageRequestSchema,
  type SetAchievementStorageResponse,
} from "./gen/accolade/v1/storage_pb.js";
import {
  Attempts,
  DEADLINE_DEFAULT,
  PAUSE_MIN,
  Pauses,
  Versions,
  mayPass,
  newRequestId,
  pauseFor,
} from "./rules.js";
import { type Connection, type HttpVersion, type Protocol, connect } from "./transport.js";

/** `code` of a set that was stored, or had nothing to do. */
export const STORED = 0;
/** `code` of a set whose record is not at the expected version. */
export const CONFLICT = 5;
/** Most conflicts that one `add` asks about. */
export const CONFLICTS_MAX = 20;

/** Milliseconds between heartbeats where nothing completes. */
const HEARTBEAT = 10_000;
/** Milliseconds of silence after which a watch connects anew. */
const SILENCE_MAX = 30_000;

export interface ClientOptions {
  /** Where the server listens; `http://127.0.0.1:50151` unless set. */
  baseUrl?: string;
  /** What is spoken: `grpc` unless set. */
  protocol?: Protocol;
  /** For `grpc-web` and `connect`: `1.1` unless set. gRPC is always over HTTP/2. */
  httpVersion?: HttpVersion;
  /** Goes with every request. Use `https:` with one, unless the server is on this machine. */
  token?: string;
  /** Milliseconds that a call may take, all its attempts together; 10000 unless set. */
  deadlineMs?: number;
  /** For `https:`: an authority of one's own (`ca`), or a client's certificate (`cert`, `key`). */
  tls?: SecureContextOptions;
}

export interface AddOptions {
  /** Gives a text to store as well, each time anew. */
  extra?: () => string | Promise<string>;
  /** Is told the record that is stored now; gives `true` to go on, `false` to leave it. */
  onConflict?: (stored: RecordState) => boolean | Promise<boolean>;
  /** Names this addition; without it the client finds a name. */
  requestId?: string;
}

export interface WatchOptions {
  /** Begins after this cursor, with `""` at the oldest; without it from now on. */
  after?: string;
  /** Tells only of these players; all where there are none. */
  playerIds?: readonly string[];
  /** Tells only of these achievements; all where there are none. */
  achievementIds?: readonly string[];
  /** Ends the watch, without an error. */
  signal?: AbortSignal;
}

/**
 * Retries what may pass under one request id, so that an update is counted once, remembers the
 * versions it has seen, and watches over lost connections. Integers of 64 bits are `bigint`.
 *
 * Errors are `ConnectError`: `code` is the status, `findDetails(ErrorInfoSchema)` has the reason.
 */
export class Client {
  /** The services as they are: one attempt, no deadline. */
  readonly storage: ServiceClient<typeof AchievementStorageService>;
  readonly completion: ServiceClient<typeof CompletionService>;
  readonly catalog: ServiceClient<typeof CatalogService>;
  readonly admin: ServiceClient<typeof AdminService>;

  readonly #connection: Connection;
  readonly #deadlineMs: number;
  readonly #versions = new Versions();
  readonly #closing = new AbortController();

  constructor(options: ClientOptions = {}) {
    this.#connection = connect({
      baseUrl: options.baseUrl ?? "http://127.0.0.1:50151",
      protocol: options.protocol ?? "grpc",
      httpVersion: options.httpVersion ?? "1.1",
      token: options.token,
      tls: options.tls ?? {},
    });
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_DEFAULT;
    // Every call that is under way listens.
    setMaxListeners(0, this.#closing.signal);
    const { transport } = this.#connection;
    this.storage = createClient(AchievementStorageService, transport);
    this.completion = createClient(CompletionService, transport);
    this.catalog = createClient(CatalogService, transport);
    this.admin = createClient(AdminService, transport);
  }

  /** Ends all calls and watches. */
  close(): void {
    this.#closing.abort(new ConnectError("the client is closed", Code.Canceled));
    this.#connection.close();
  }

  /** Reads the records of a player: those of these nodes, or all where none are named. */
  async get(title: string, playerId: string, nodeIds: readonly string[] = []): Promise<Record[]> {
    const schema = GetAchievementStorageRequestSchema;
    const request = create(schema, { title, playerId, achievementIds: [...nodeIds] });
    const attempts = new Attempts(this.#deadlineMs);
    const call = this.storage.getAchievementStorage;
    const { entity } = await this.#call(schema, call, request, attempts);
    for (const record of entity) {
      this.#versions.saw([title, playerId, record.achievementId], record.version);
    }
    return entity;
  }

  /**
   * Changes a record. Without a `requestId` it gets one; all attempts use the same.
   *
   * After an error the update may be stored, unless the server refused it at the first attempt:
   * give a `requestId` beforehand, and repeat the call with the same.
   */
  async set(
    request: MessageInitShape<typeof SetAchievementStorageRequestSchema>,
  ): Promise<SetAchievementStorageResponse> {
    const schema = SetAchievementStorageRequestSchema;
    const named = clone(schema, create(schema, request));
    named.requestId ||= newRequestId();
    return this.#set(named, new Attempts(this.#deadlineMs));
  }

  /**
   * Adds to the progress of a record.
   *
   * With `extra`, its text is stored as well, on the version that this client saw last. On a
   * conflict `onConflict` gets the record that is stored now; if it returns `true`, `extra` is
   * asked once more, and the same addition is stored with it.
   */
  async add(
    title: string,
    playerId: string,
    nodeId: string,
    delta: bigint,
    { extra, onConflict, requestId }: AddOptions = {},
  ): Promise<SetAchievementStorageResponse> {
    const attempts = new Attempts(this.#deadlineMs);
    const request = create(SetAchievementStorageRequestSchema, {
      title,
      playerId,
      nodeId,
      change: { case: "delta", value: delta },
      requestId: requestId || newRequestId(),
    });
    if (extra === undefined) {
      return this.#set(request, attempts);
    }
    // What the text is made from is at least this old.
    let version = this.#versions.of([title, playerId, nodeId]);
    for (let asked = 0; ; asked++) {
      request.extra = await extra();
      request.expectedVersion = version;
      const answer = await this.#set(request, attempts);
      if (answer.code !== CONFLICT || asked === CONFLICTS_MAX || onConflict === undefined) {
        return answer;
      }
      const stored = answer.entity ?? create(RecordStateSchema);
      if (!(await onConflict(stored))) {
        return answer;
      }
      // Not what another call has seen meanwhile: the caller has judged this one.
      version = stored.version;
    }
  }

  /**
   * Follows completions; each comes once, in order, over any number of connections. Resets are
   * passed over.
   *
   * Keep a completion's cursor together with what it causes, and begin `after` it the next time.
   */
  async *watch(
    title: string,
    options: WatchOptions = {},
  ): AsyncGenerator<Completion, void, undefined> {
    for await (const event of this.watchEvents(title, options)) {
      if (event.$typeName === "accolade.v1.Completion") {
        yield event;
      }
    }
  }

  /** Like `watch`, and tells of resets too: for whoever must take something back. */
  async *watchEvents(
    title: string,
    { after, playerIds = [], achievementIds = [], signal }: WatchOptions = {},
  ): AsyncGenerator<Completion | Reset, void, undefined> {
    const request = create(WatchCompletionsRequestSchema, {
      title,
      playerIds: [...playerIds],
      achievementIds: [...achievementIds],
      heartbeatInterval: durationFromMs(HEARTBEAT),
    });
    if (after !== undefined) {
      request.after = after;
    }
    // What no message can hold is told at once: it does not pass.
    toBinary(WatchCompletionsRequestSchema, request);
    const ending = new AbortController();
    const end = () => ending.abort();
    const signals = [this.#closing.signal, ...(signal === undefined ? [] : [signal])];
    for (const each of signals) {
      each.addEventListener("abort", end);
      if (each.aborted) {
        end();
      }
    }
    let pauses = new Pauses();
    try {
      while (!ending.signal.aborted) {
        let pause = PAUSE_MIN;
        const stream = new Stream(ending.signal);
        try {
          const messages = this.completion.watchCompletions(request, { signal: stream.signal });
          for await (const { event } of messages) {
            stream.heard();
            if (event.case === undefined) {
              continue;
            }
            if (request.after !== event.value.cursor) {
              request.after = event.value.cursor;
              pauses = new Pauses();
            }
            if (event.case === "completion" || event.case === "reset") {
              // Silence is the server's, not that of whoever follows.
              stream.rests();
              yield event.value;
              stream.heard();
            }
          }
        } catch (error) {
          if (ending.signal.aborted) {
            return;
          }
          const lost = ConnectError.from(error);
          if (!mayPass(lost)) {
            throw lost;
          }
          pause = pauses.after(lost);
        } finally {
          stream.end();
        }
        await pauseFor(pause, ending.signal);
      }
    } finally {
      for (const each of signals) {
        each.removeEventListener("abort", end);
      }
    }
  }

  async #set(
    request: SetAchievementStorageRequest,
    attempts: Attempts,
  ): Promise<SetAchievementStorageResponse> {
    const schema = SetAchievementStorageRequestSchema;
    const call = this.storage.setAchievementStorage;
    const answer = await this.#call(schema, call, request, attempts);
    const record = [request.title, request.playerId, request.nodeId] as const;
    if (answer.code === CONFLICT) {
      this.#versions.conflicted(record, answer.entity?.version ?? 0n);
    } else {
      this.#versions.saw(record, answer.updated?.version ?? 0n);
    }
    return answer;
  }

  async #call<Request extends DescMessage, Answer>(
    schema: Request,
    call: (request: MessageShape<Request>, options: CallOptions) => Promise<Answer>,
    request: MessageShape<Request>,
    attempts: Attempts,
  ): Promise<Answer> {
    // As in `watch`.
    toBinary(schema, request);
    const { signal } = this.#closing;
    for (;;) {
      try {
        return await call(request, { signal, timeoutMs: attempts.timeoutMs() });
      } catch (error) {
        if (signal.aborted) {
          throw error;
        }
        await attempts.after(ConnectError.from(error), signal);
      }
    }
  }
}

/** One connection of a watch: ends with the watch, or when the server was silent for long. */
class Stream {
  readonly #controller = new AbortController();
  readonly #ending: AbortSignal;
  readonly #end = () => this.end();
  #silence: NodeJS.Timeout | undefined;

  constructor(ending: AbortSignal) {
    this.#ending = ending;
    ending.addEventListener("abort", this.#end);
    this.heard();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  heard(): void {
    this.rests();
    this.#silence = setTimeout(() => {
      this.#controller.abort(new ConnectError("the server went silent", Code.Unavailable));
    }, SILENCE_MAX);
  }

  rests(): void {
    clearTimeout(this.#silence);
  }

  end(): void {
    this.rests();
    this.#ending.removeEventListener("abort", this.#end);
    this.#controller.abort();
  }
}
