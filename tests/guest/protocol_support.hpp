#pragma once

// Both ends of the channel as they are tested: sessions that write down what they are told, and bytes cut anywhere.

#include "guest/protocol/guest_session.hpp"
#include "guest/protocol/host_session.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

namespace caisson::guest_protocol {

using bytes = std::vector<std::byte>;

inline bytes to_bytes(const std::string& text) {
  const auto view = std::as_bytes(std::span{text});
  return {view.begin(), view.end()};
}

inline std::string to_text(std::span<const std::byte> b) {
  return {reinterpret_cast<const char*>(b.data()), b.size()};
}

inline bytes operator+(bytes a, const bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Feeds `whole` in pieces whose sizes come from `sizes`, again and again.
template <class Feed> void in_pieces(const bytes& whole, const std::vector<std::size_t>& sizes, Feed feed) {
  std::size_t at = 0, turn = 0;
  while (at < whole.size()) {
    const auto size = sizes.empty() ? whole.size() : std::min(sizes[turn++ % sizes.size()] + 1, whole.size() - at);
    feed(std::span{whole}.subspan(at, size));
    at += size;
  }
}

inline rc::Gen<std::vector<std::size_t>> piece_sizes() {
  return rc::gen::container<std::vector<std::size_t>>(rc::gen::weightedOneOf<std::size_t>(
      {{3, rc::gen::inRange<std::size_t>(0, 40)}, {1, rc::gen::inRange<std::size_t>(0, 100'000)}}));
}

inline rc::Gen<bytes> some_bytes(std::size_t most) {
  return rc::gen::map(rc::gen::pair(rc::gen::arbitrary<std::string>(), rc::gen::inRange<std::size_t>(0, most)),
                      [](const std::pair<std::string, std::size_t>& p) {
                        auto b = to_bytes(p.first);
                        for (std::size_t n = b.size(); n < p.second; ++n)
                          b.push_back(static_cast<std::byte>(n * 31 + p.second));
                        return b;
                      });
}

/// A host that writes down what it is told.
struct recording_host {
  std::vector<std::string> log;
  std::map<std::uint32_t, std::string> data;
  std::vector<std::uint32_t> ended;
  std::string error;
  host_session session{{
      .on_hello = [this](const v1::AgentHello& h) { log.push_back("hello " + h.kernel_release()); },
      .on_reply = [this](const v1::AgentReply& r) { log.push_back("reply " + std::to_string(r.id())); },
      .on_notice = [this](const v1::AgentNotice& n) { log.push_back("notice " + n.ShortDebugString()); },
      .on_data = [this](std::uint32_t s, std::span<const std::byte> b) { data[s] += to_text(b); },
      .on_eof = [this](std::uint32_t s) { ended.push_back(s), log.push_back("eof " + std::to_string(s)); },
      .on_writable = nullptr,
      .on_stopped = [this](std::uint32_t s) { log.push_back("stopped " + std::to_string(s)); },
      .on_protocol_error = [this](const std::string& text) { error = text; },
  }};
};

struct recording_guest {
  std::vector<std::string> log;
  std::map<std::uint32_t, std::string> data;
  guest_session session{{
      .on_open =
          [this] {
            log.push_back("open");
            v1::AgentHello hello;
            hello.set_protocol_version(protocol_version);
            hello.set_kernel_release("6.1");
            session.send_hello(hello);
          },
      .on_request =
          [this](const v1::AgentRequest& r) {
            log.push_back("request " + std::to_string(r.id()));
            if (r.has_exec_start()) {
              session.add_input(r.exec_start().stdin_stream());
              session.add_output(r.exec_start().stdout_stream());
              session.add_output(r.exec_start().stderr_stream());
            }
            v1::AgentReply reply;
            reply.set_id(r.id());
            if (r.has_exec_start())
              reply.mutable_exec_started()->set_exec_id(r.id());
            else
              reply.mutable_done();
            session.send_reply(reply);
          },
      .on_data = [this](std::uint32_t s, std::span<const std::byte> b) { data[s] += to_text(b); },
      .on_eof = [this](std::uint32_t s) { log.push_back("eof " + std::to_string(s)); },
      .on_writable = nullptr,
      .on_stopped = [this](std::uint32_t s) { log.push_back("stopped " + std::to_string(s)); },
  }};
};

template <class Session> bytes all_output(Session& session) {
  bytes out;
  while (session.has_output())
    out = std::move(out) + session.take_output();
  return out;
}

/// Carries bytes both ways until neither has more to say.
inline void settle(recording_host& host, recording_guest& guest) {
  while (host.session.has_output() || guest.session.has_output()) {
    guest.session.feed(host.session.take_output());
    host.session.feed(guest.session.take_output());
  }
}

inline v1::AgentRequest facts_request(std::uint64_t id) {
  v1::AgentRequest request;
  request.set_id(id);
  request.mutable_read_facts();
  return request;
}

inline v1::AgentRequest exec_request(std::uint64_t id, std::uint32_t first_stream) {
  v1::AgentRequest request;
  request.set_id(id);
  auto& exec = *request.mutable_exec_start();
  exec.add_argv("cat");
  exec.set_stdin_stream(first_stream);
  exec.set_stdout_stream(first_stream + 1);
  exec.set_stderr_stream(first_stream + 2);
  return request;
}

inline v1::AgentNotice exit_notice(std::uint64_t exec_id) {
  v1::AgentNotice notice;
  notice.mutable_exec_exited()->set_exec_id(exec_id);
  return notice;
}

/// Bytes of a guest that has greeted in this epoch.
inline bytes greeting(std::uint64_t epoch) {
  v1::GuestControl control;
  control.mutable_hello()->set_protocol_version(protocol_version);
  bytes out;
  append_frame(out, epoch, frame_type::control, 0, to_bytes(control.SerializeAsString()));
  return out;
}

} // namespace caisson::guest_protocol
