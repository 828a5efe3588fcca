/**
 * A client of Accolade.
 *
 * Everything of the `.proto` files is here too: a message `Record` comes with its `RecordSchema`.
 */

export { Code, ConnectError } from "@connectrpc/connect";

export { CONFLICT, CONFLICTS_MAX, Client, STORED } from "./client.js";
export type { AddOptions, ClientOptions, WatchOptions } from "./client.js";
export type { HttpVersion, Protocol } from "./transport.js";

export * from "./gen/accolade/v1/admin_pb.js";
export * from "./gen/accolade/v1/catalog_pb.js";
export * from "./gen/accolade/v1/completion_pb.js";
export * from "./gen/accolade/v1/storage_pb.js";
export {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
export type { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details_pb.js";
