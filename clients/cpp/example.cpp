// Accolade from C++: reads a player's records, adds to one, and follows completions.
//
//     example ADDRESS get TITLE PLAYER
//     example ADDRESS add TITLE PLAYER NODE DELTA
//     example ADDRESS watch TITLE [CURSOR]

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <thread>

#include "accolade/v1/completion.grpc.pb.h"
#include "accolade/v1/storage.grpc.pb.h"

namespace v1 = accolade::v1;
using Clock = std::chrono::system_clock;
using std::chrono::milliseconds;

// For a call with all its attempts, and for one of them: a connection may have died without a word.
constexpr milliseconds DEADLINE{10'000}, ATTEMPT_MAX{3'000};
constexpr milliseconds PAUSE_MIN{50}, PAUSE_MAX{5'000};
// A watch hears something at least so often, or its connection is given up after the timeout.
constexpr int HEARTBEAT_SECONDS = 10, KEEPALIVE_MS = 20'000, KEEPALIVE_TIMEOUT_MS = 10'000;

std::mt19937& chance() {
  static std::mt19937 random{std::random_device{}()};
  return random;
}

// Each is up to twice the one before; between half of it and all of it, by chance.
class Pauses {
 public:
  milliseconds next() {
    const auto whole = pause_.count();
    pause_ = std::min(pause_ * 2, PAUSE_MAX);
    return milliseconds{std::uniform_int_distribution<>(whole / 2, whole)(chance())};
  }

 private:
  milliseconds pause_ = PAUSE_MIN;
};

// Whether trying again can help.
bool may_pass(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::INTERNAL:
      return true;
    default:
      return false;
  }
}

// Makes attempts, `call(context)`, until one is answered, cannot be, or the deadline is there.
template <typename Call>
grpc::Status attempts(Call call) {
  const auto until = Clock::now() + DEADLINE;
  Pauses pauses;
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(std::min(until, Clock::now() + ATTEMPT_MAX));
    const grpc::Status status = call(&context);
    const auto pause = pauses.next();
    if (status.ok() || !may_pass(status) || Clock::now() + pause >= until) return status;
    std::this_thread::sleep_for(pause);
  }
}

// A name that no other update has.
std::string new_request_id() {
  std::random_device random;
  char id[33];
  std::snprintf(id, sizeof id, "%08x%08x%08x%08x", random(), random(), random(), random());
  return id;
}

int failed(const grpc::Status& status) {
  std::cerr << "status " << status.error_code() << ": " << status.error_message() << std::endl;
  return 1;
}

int get(v1::AchievementStorageService::Stub* storage, char** words) {
  v1::GetAchievementStorageRequest request;
  request.set_title(words[0]);
  request.set_player_id(words[1]);
  v1::GetAchievementStorageResponse answer;
  const auto status = attempts([&](grpc::ClientContext* context) {
    return storage->GetAchievementStorage(context, request, &answer);
  });
  if (!status.ok()) return failed(status);
  for (const auto& record : answer.entity()) {
    // Completion is `completed_at`, never `progress` beside `max_progress`.
    std::cout << record.achievement_id() << " " << record.progress() << "/"
              << record.max_progress() << (record.completed_at() ? " completed" : "") << std::endl;
  }
  return 0;
}

int add(v1::AchievementStorageService::Stub* storage, char** words) {
  v1::SetAchievementStorageRequest request;
  request.set_title(words[0]);
  request.set_player_id(words[1]);
  request.set_node_id(words[2]);
  request.set_delta(std::atoll(words[3]));
  // The same in all attempts: an answer can be lost although the update was stored, and it is then
  // recognised, not counted again.
  request.set_request_id(new_request_id());
  v1::SetAchievementStorageResponse answer;
  const auto status = attempts([&](grpc::ClientContext* context) {
    return storage->SetAchievementStorage(context, request, &answer);
  });
  if (!status.ok()) return failed(status);
  std::cout << answer.updated().achievement_id() << " " << answer.updated().progress()
            << (answer.replayed() ? " replayed" : "")
            << (answer.newly_completed() ? " newly completed" : "") << std::endl;
  return 0;
}

int watch(v1::CompletionService::Stub* completions, char** words) {
  v1::WatchCompletionsRequest request;
  request.set_title(words[0]);
  // "" stands for the oldest completion. A server that rewards players keeps the cursor together
  // with the reward, and passes it here.
  request.set_after(words[1] != nullptr ? words[1] : "");
  request.mutable_heartbeat_interval()->set_seconds(HEARTBEAT_SECONDS);
  Pauses pauses;
  while (true) {
    grpc::ClientContext context;
    const auto stream = completions->WatchCompletions(&context, request);
    v1::WatchCompletionsResponse message;
    while (stream->Read(&message)) {
      pauses = Pauses();
      if (message.has_started()) request.set_after(message.started().cursor());
      if (message.has_heartbeat()) request.set_after(message.heartbeat().cursor());
      if (message.has_reset()) request.set_after(message.reset().cursor());
      if (message.has_completion()) {
        const auto& it = message.completion();
        std::cout << it.player_id() << " " << it.achievement_id() << " " << it.cursor()
                  << std::endl;
        request.set_after(it.cursor());
      }
    }
    const auto status = stream->Finish();
    if (!may_pass(status)) return failed(status);
    std::this_thread::sleep_for(pauses.next());
  }
}

int main(int count, char** words) {
  const std::string what = count > 3 ? words[2] : "";
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS);
  // Or the pause before it connects anew grows to two minutes.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, PAUSE_MAX.count());
  // With TLS: grpc::SslCredentials({}). A token goes with each call:
  // context.AddMetadata("authorization", "Bearer " + token).
  const auto channel = grpc::CreateCustomChannel(
      count > 1 ? words[1] : "", grpc::InsecureChannelCredentials(), arguments);
  const auto storage = v1::AchievementStorageService::NewStub(channel);
  const auto completions = v1::CompletionService::NewStub(channel);
  if (what == "get" && count == 5) return get(storage.get(), words + 3);
  if (what == "add" && count == 7) return add(storage.get(), words + 3);
  if (what == "watch" && count <= 5) return watch(completions.get(), words + 3);
  std::cerr << "example ADDRESS get TITLE PLAYER | add TITLE PLAYER NODE DELTA | "
               "watch TITLE [CURSOR]" << std::endl;
  return 64;
}
