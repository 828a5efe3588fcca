// A driver: gRPC for C++, with messages made from the descriptors in the file that is argv[1].
// ../driver.py says what a driver reads and writes.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include "details.pb.h"

namespace pb = google::protobuf;

// No call of the table takes so long.
constexpr std::chrono::seconds SECONDS_MAX{30};

// By number, as gRPC counts them.
const char* const CODES[] = {
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
};

void check(bool is_right, const std::string& what) {
  if (!is_right) throw std::runtime_error(what);
}

template <typename Message>
void parse(const std::string& json, Message* message, bool ignores_unknown = false) {
  pb::util::JsonParseOptions options;
  options.ignore_unknown_fields = ignores_unknown;
  const auto status = pb::util::JsonStringToMessage(json, message, options);
  check(status.ok(), status.ToString());
}

// Every field, the defaults too, under the names of the `.proto` files.
std::string to_json(const pb::Message& message) {
  pb::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  check(pb::util::MessageToJsonString(message, &json, options).ok(), "a message has no JSON");
  return json;
}

std::string to_json(const grpc::Status& status) {
  details::Failure failure;
  auto* error = failure.mutable_error();
  error->set_code(CODES[status.error_code()]);
  details::Status whole;
  check(whole.ParseFromString(status.error_details()), "grpc-status-details-bin is damaged");
  for (const auto& any : whole.details()) {
    const auto type = any.type_url().substr(any.type_url().rfind('/') + 1);
    details::ErrorInfo info;
    details::BadRequest bad;
    if (type == "google.rpc.ErrorInfo" && info.ParseFromString(any.value())) {
      error->set_reason(info.reason());
    }
    if (type == "google.rpc.BadRequest" && bad.ParseFromString(any.value())) {
      for (const auto& violation : bad.field_violations()) error->add_fields(violation.field());
    }
  }
  std::sort(error->mutable_fields()->begin(), error->mutable_fields()->end());
  return to_json(failure);
}

grpc::ByteBuffer to_bytes(const pb::Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

void from_bytes(const grpc::ByteBuffer& bytes, pb::Message* message) {
  grpc::Slice slice;
  check(bytes.DumpToSingleSlice(&slice).ok(), "an answer cannot be read");
  check(message->ParseFromArray(slice.begin(), slice.size()), "an answer is damaged");
}

// The descriptors, and what makes messages of them.
class Schema {
 public:
  explicit Schema(const char* path) {
    std::ifstream file(path, std::ios::binary);
    pb::FileDescriptorSet set;
    check(set.ParseFromIstream(&file), std::string(path) + " is no set of descriptors");
    for (const auto& it : set.file()) check(pool_.BuildFile(it) != nullptr, it.name());
  }

  const pb::MethodDescriptor* method(std::string path) const {
    std::replace(path.begin(), path.end(), '/', '.');
    const auto* found = pool_.FindMethodByName(path);
    check(found != nullptr, path + " is no method");
    return found;
  }

  std::unique_ptr<pb::Message> message(const pb::Descriptor* type) {
    return std::unique_ptr<pb::Message>(factory_.GetPrototype(type)->New());
  }

  // The request in a line of input, read as a field of the line.
  std::unique_ptr<pb::Message> request(const pb::Descriptor* type, const std::string& line) {
    const auto name = "line." + type->name();
    const auto* wrapper = pool_.FindMessageTypeByName(name);
    if (wrapper == nullptr) {
      pb::FileDescriptorProto file;
      file.set_name(name);
      file.set_package("line");
      file.set_syntax("proto3");
      file.add_dependency(type->file()->name());
      auto* whole = file.add_message_type();
      whole->set_name(type->name());
      add_field(whole, "method", 1, pb::FieldDescriptorProto::TYPE_STRING);
      add_field(whole, "request", 2, pb::FieldDescriptorProto::TYPE_MESSAGE)
          ->set_type_name("." + type->full_name());
      add_field(whole, "take", 3, pb::FieldDescriptorProto::TYPE_UINT32);
      check(pool_.BuildFile(file) != nullptr, name);
      wrapper = pool_.FindMessageTypeByName(name);
    }
    auto whole = message(wrapper);
    parse(line, whole.get());
    auto found = message(type);
    const auto* field = wrapper->FindFieldByName("request");
    found->CopyFrom(whole->GetReflection()->GetMessage(*whole, field, &factory_));
    return found;
  }

 private:
  static pb::FieldDescriptorProto* add_field(pb::DescriptorProto* to, const char* name, int number,
                                             pb::FieldDescriptorProto::Type type) {
    auto* field = to->add_field();
    field->set_name(name);
    field->set_number(number);
    field->set_type(type);
    field->set_label(pb::FieldDescriptorProto::LABEL_OPTIONAL);
    return field;
  }

  pb::DescriptorPool pool_;
  pb::DynamicMessageFactory factory_{&pool_};
};

// Makes one call, and gives the line that tells what became of it.
std::string call(Schema* schema, grpc::GenericStub* stub, const std::string& line) {
  details::Call asked;
  parse(line, &asked, true);
  const auto* method = schema->method(asked.method());
  const auto request = schema->request(method->input_type(), line);
  const auto answer = schema->message(method->output_type());

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + SECONDS_MAX);
  grpc::CompletionQueue events;
  const auto next = [&events] {
    void* tag = nullptr;
    bool is_done = false;
    return events.Next(&tag, &is_done) && is_done;
  };
  auto stream = stub->PrepareCall(&context, "/" + asked.method(), &events);
  stream->StartCall(nullptr);
  next();
  stream->WriteLast(to_bytes(*request), {}, nullptr);
  next();

  std::string answers;
  unsigned count = 0;
  grpc::ByteBuffer bytes;
  const bool is_stream = method->server_streaming();
  const unsigned take = is_stream ? asked.take() : 1;
  while (count < take && (stream->Read(&bytes, nullptr), next())) {
    from_bytes(bytes, answer.get());
    answers += (count++ ? ", " : "") + to_json(*answer);
  }
  const bool is_enough = is_stream && count == take;
  if (is_enough) context.TryCancel();
  grpc::Status status;
  stream->Finish(&status, nullptr);
  next();
  if (!status.ok() && !is_enough) return to_json(status);
  check(is_stream || count == 1, asked.method() + " answered nothing");
  return is_stream ? "{\"responses\": [" + answers + "]}" : "{\"response\": " + answers + "}";
}

int main(int, char** argv) {
  const char* address = std::getenv("ACCOLADE_ADDRESS");
  try {
    const bool is_used_right = argv[1] != nullptr && address != nullptr;
    check(is_used_right, "ACCOLADE_ADDRESS=HOST:PORT driver DESCRIPTORS");
    Schema schema(argv[1]);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(64 << 20);
    arguments.SetMaxSendMessageSize(-1);
    const auto channel =
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    grpc::GenericStub stub(channel);
    for (std::string line; std::getline(std::cin, line);) {
      std::cout << call(&schema, &stub, line) << std::endl;
    }
  } catch (const std::exception& error) {
    std::cerr << "driver: " << error.what() << std::endl;
    return 1;
  }
}
