#include "backends/host/wire.hpp"

#include <algorithm>

#include "messages/backend.pb.h"

namespace caisson::host {
namespace {

constexpr std::size_t header_bytes = 4;
constexpr std::uint32_t default_deadline_ms = 30'000;
constexpr std::uint32_t longest_deadline_ms = 600'000;

std::uint32_t asked_deadline_ms(const v1::BackendCall& call) {
  switch (call.verb_case()) {
  case v1::BackendCall::kDescribe:
    return call.describe().deadline_ms();
  case v1::BackendCall::kCreate:
    return call.create().deadline_ms();
  case v1::BackendCall::kInspect:
    return call.inspect().deadline_ms();
  case v1::BackendCall::kApplyMemoryStep:
    return call.apply_memory_step().deadline_ms();
  case v1::BackendCall::kSetVcpus:
    return call.set_vcpus().deadline_ms();
  case v1::BackendCall::kPause:
    return call.pause().deadline_ms();
  case v1::BackendCall::kResume:
    return call.resume().deadline_ms();
  case v1::BackendCall::kDestroy:
    return call.destroy().deadline_ms();
  case v1::BackendCall::kList:
    return call.list().deadline_ms();
  case v1::BackendCall::kAttach:
    return call.attach().deadline_ms();
  case v1::BackendCall::kDetach:
    return call.detach().deadline_ms();
  case v1::BackendCall::VERB_NOT_SET:
    break;
  }
  return 0;
}

} // namespace

std::optional<std::string> to_frame(const google::protobuf::MessageLite& message) {
  auto size = message.ByteSizeLong();
  if (size > max_message_bytes)
    return std::nullopt;
  std::string out(header_bytes, '\0');
  for (std::size_t i = 0; i < header_bytes; ++i)
    out[i] = static_cast<char>((size >> (8 * (header_bytes - 1 - i))) & 0xff);
  message.AppendPartialToString(&out);
  return out;
}

bool frame_reader::feed(std::span<const std::byte> bytes) {
  if (broken_)
    return false;
  if (at_ > 0) {
    buffer_.erase(0, at_);
    at_ = 0;
  }
  buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  // A length that is announced too large is refused here, before its bytes would pile up.
  std::size_t at = 0;
  while (buffer_.size() - at >= header_bytes) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < header_bytes; ++i)
      size = (size << 8) | static_cast<unsigned char>(buffer_[at + i]);
    if (size > max_message_bytes) {
      broken_ = true;
      buffer_.resize(at);
      return false;
    }
    if (buffer_.size() - at < header_bytes + size)
      break;
    at += header_bytes + size;
  }
  return true;
}

std::optional<std::string_view> frame_reader::next() {
  std::string_view rest{buffer_};
  rest.remove_prefix(at_);
  if (rest.size() < header_bytes)
    return std::nullopt;
  std::size_t size = 0;
  for (std::size_t i = 0; i < header_bytes; ++i)
    size = (size << 8) | static_cast<unsigned char>(rest[i]);
  if (rest.size() < header_bytes + size)
    return std::nullopt;
  at_ += header_bytes + size;
  return rest.substr(header_bytes, size);
}

std::string_view verb_name(const v1::BackendCall& call) {
  switch (call.verb_case()) {
  case v1::BackendCall::kDescribe:
    return "describe";
  case v1::BackendCall::kCreate:
    return "create";
  case v1::BackendCall::kInspect:
    return "inspect";
  case v1::BackendCall::kApplyMemoryStep:
    return "apply_memory_step";
  case v1::BackendCall::kSetVcpus:
    return "set_vcpus";
  case v1::BackendCall::kPause:
    return "pause";
  case v1::BackendCall::kResume:
    return "resume";
  case v1::BackendCall::kDestroy:
    return "destroy";
  case v1::BackendCall::kList:
    return "list";
  case v1::BackendCall::kAttach:
    return "attach";
  case v1::BackendCall::kDetach:
    return "detach";
  case v1::BackendCall::VERB_NOT_SET:
    break;
  }
  return "nothing";
}

std::string sandbox_of(const v1::BackendCall& call) {
  switch (call.verb_case()) {
  case v1::BackendCall::kCreate:
    return call.create().spec().sandbox_id();
  case v1::BackendCall::kInspect:
    return call.inspect().sandbox_id();
  case v1::BackendCall::kApplyMemoryStep:
    return call.apply_memory_step().sandbox_id();
  case v1::BackendCall::kSetVcpus:
    return call.set_vcpus().sandbox_id();
  case v1::BackendCall::kPause:
    return call.pause().sandbox_id();
  case v1::BackendCall::kResume:
    return call.resume().sandbox_id();
  case v1::BackendCall::kDestroy:
    return call.destroy().sandbox_id();
  case v1::BackendCall::kAttach:
    return call.attach().sandbox_id();
  case v1::BackendCall::kDetach:
    return call.detach().sandbox_id();
  default:
    return {};
  }
}

std::uint32_t deadline_ms_of(const v1::BackendCall& call) {
  auto asked = asked_deadline_ms(call);
  return asked == 0 ? default_deadline_ms : std::min(asked, longest_deadline_ms);
}

void set_deadline_ms(v1::BackendCall& call, std::uint32_t deadline_ms) {
  switch (call.verb_case()) {
  case v1::BackendCall::kDescribe:
    return call.mutable_describe()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kCreate:
    return call.mutable_create()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kInspect:
    return call.mutable_inspect()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kApplyMemoryStep:
    return call.mutable_apply_memory_step()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kSetVcpus:
    return call.mutable_set_vcpus()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kPause:
    return call.mutable_pause()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kResume:
    return call.mutable_resume()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kDestroy:
    return call.mutable_destroy()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kList:
    return call.mutable_list()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kAttach:
    return call.mutable_attach()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::kDetach:
    return call.mutable_detach()->set_deadline_ms(deadline_ms);
  case v1::BackendCall::VERB_NOT_SET:
    return;
  }
}

} // namespace caisson::host
