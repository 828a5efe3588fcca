// A driver: grpc-js, with the definitions that proto-loader makes of the descriptors.

import { ADDRESS, API, MS_MAX, REGISTRY, answered, failed, require, serve } from "./driver.mjs";

const { fromBinary, toBinary } = require("@bufbuild/protobuf");
const { Client, Metadata, credentials } = require("@grpc/grpc-js");
const { loadFileDescriptorSetFromBuffer } = require("@grpc/proto-loader");

const SERVICES = loadFileDescriptorSetFromBuffer(API, { longs: String });
const CLIENT = new Client(ADDRESS, credentials.createInsecure());

async function call(method, message, take) {
  const it = SERVICES[method.service][method.name];
  const { input, output } = method.descriptor;
  // proto-loader has a JSON of its own: the table's is read and written on both sides of it.
  const request = it.requestDeserialize(Buffer.from(toBinary(input, message)));
  const found = [];
  const took = (object) => found.push(fromBinary(output, it.responseSerialize(object)));
  const options = { deadline: Date.now() + MS_MAX };
  const [path, ...codecs] = [it.path, it.requestSerialize, it.responseDeserialize];
  try {
    if (!method.isStream) {
      await new Promise((done, fail) => {
        const ended = (error, object) => (error ? fail(error) : done(took(object)));
        CLIENT.makeUnaryRequest(path, ...codecs, request, new Metadata(), options, ended);
      });
      return answered(method, found);
    }
    const stream = it.requestStream
      ? CLIENT.makeBidiStreamRequest(path, ...codecs, options)
      : CLIENT.makeServerStreamRequest(path, ...codecs, request, options);
    if (it.requestStream) {
      stream.end(request);
    }
    for await (const object of stream) {
      if (took(object) === take) {
        // What is cancelled ends with an error.
        stream.on("error", () => {});
        stream.cancel();
        break;
      }
    }
    return answered(method, found);
  } catch (error) {
    return failed(error.code, details(error));
  }
}

function details(error) {
  const [bytes = []] = error.metadata.get("grpc-status-details-bin");
  const status = fromBinary(REGISTRY.getMessage("google.rpc.Status"), Uint8Array.from(bytes));
  return status.details.map(({ typeUrl, value }) => [typeUrl.split("/").pop(), value]);
}

await serve(call);
CLIENT.close();
