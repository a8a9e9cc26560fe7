#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cloud-hypervisor/events.hpp"
#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/reply.hpp"

/// Everything that Cloud Hypervisor's process says to us. The first byte of an input chooses the reader:
///   h  a reply on the wire          e  the event monitor's stream     x  the body of an error
///   p  vmm.ping  i  vm.info  d  a device that was added  c  vm.counters
/// Beside not crashing it holds: the pieces in which bytes come make no difference, there is either a value or an error,
/// and what is said is bounded and can be shown.
namespace {

using namespace caisson::cloud_hypervisor;

[[noreturn]] void broken(const std::string& what) {
  std::fprintf(stderr, "broken promise: %s\n", what.c_str());
  std::abort();
}

void hold(bool promise, const char* what) {
  if (!promise)
    broken(what);
}

void can_be_shown(const std::string& text, std::size_t most) {
  hold(text.size() <= most, "a text has no bound");
  hold(std::all_of(text.begin(), text.end(), [](unsigned char c) { return c >= 0x20 && c < 0x7f; }),
       "a text cannot be shown");
}

template <class Parsed> void value_or_error(const Parsed& out) {
  hold(out.value.has_value() == out.error.empty(), "neither a value nor an error");
  can_be_shown(out.error, 1024);
}

void read_bodies(std::string_view body) {
  value_or_error(parse_ping(body));
  value_or_error(parse_info(body));
  value_or_error(parse_pci_device(body));
  value_or_error(parse_counters(body));
}

// Where to cut: from the input's own bytes, so that the fuzzer can move it.
std::size_t next_piece(std::string_view rest, std::size_t turn) {
  const auto wish = turn % 3 == 0 ? std::size_t{1} : std::size_t{1} + static_cast<unsigned char>(rest.front());
  return std::min(rest.size(), wish);
}

struct read_reply {
  reply_reader::state state;
  http_reply reply;
  std::string error;
};

read_reply read_whole(std::string_view bytes) {
  reply_reader reader;
  if (reader.feed(bytes) == reply_reader::state::wants_more)
    reader.end();
  auto state = reader.end();
  hold(state != reply_reader::state::wants_more, "a reply neither complete nor broken at the end");
  return {state, reader.take(), reader.error()};
}

read_reply read_in_pieces(std::string_view bytes) {
  reply_reader reader;
  auto state = reply_reader::state::wants_more;
  for (std::size_t turn = 0; !bytes.empty() && state == reply_reader::state::wants_more; ++turn) {
    const auto size = next_piece(bytes, turn);
    state = reader.feed(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  state = reader.end();
  return {state, reader.take(), reader.error()};
}

void read_http(std::string_view bytes) {
  const auto whole = read_whole(bytes);
  const auto pieces = read_in_pieces(bytes);
  hold(whole.state == pieces.state, "the pieces of a reply make a difference to whether it is one");
  hold(whole.reply.status == pieces.reply.status && whole.reply.body == pieces.reply.body,
       "the pieces of a reply make a difference to what it says");
  can_be_shown(whole.error, 1024);
  can_be_shown(whole.reply.text(), 4096);
  (void)answer_of(whole.reply.status);
  if (whole.state == reply_reader::state::complete && whole.reply.ok())
    read_bodies(whole.reply.body);
}

bool same(const vmm_event& a, const vmm_event& b) {
  return a.secs == b.secs && a.nanos == b.nanos && a.source == b.source && a.event == b.event &&
         a.properties == b.properties;
}

void read_events(std::string_view bytes) {
  event_parser whole;
  event_parser parts;
  const auto all = whole.feed(bytes);
  std::vector<vmm_event> some;
  for (std::size_t turn = 0; !bytes.empty(); ++turn) {
    const auto size = next_piece(bytes, turn);
    for (auto& each : parts.feed(bytes.substr(0, size)))
      some.push_back(std::move(each));
    bytes.remove_prefix(size);
  }
  hold(std::equal(all.begin(), all.end(), some.begin(), some.end(), same), "the pieces of events make a difference");
  hold(whole.skipped() == parts.skipped(), "the pieces of events make a difference to what is passed over");
  hold(parts.waiting() <= event_parser::most_event_bytes, "events wait without a bound");
}

void read_chain(std::string_view body) {
  const auto chain = read_error_chain(body);
  hold(chain.size() <= 32, "a chain has no bound");
  for (const auto& each : chain)
    can_be_shown(each, 1024);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0)
    return 0;
  const std::string_view input{reinterpret_cast<const char*>(data) + 1, size - 1};
  switch (data[0]) {
  case 'h':
    read_http(input);
    break;
  case 'e':
    read_events(input);
    break;
  case 'x':
    read_chain(input);
    break;
  case 'p':
    value_or_error(parse_ping(input));
    break;
  case 'i':
    value_or_error(parse_info(input));
    break;
  case 'd':
    value_or_error(parse_pci_device(input));
    break;
  case 'c':
    value_or_error(parse_counters(input));
    break;
  default:
    read_bodies(input);
  }
  return 0;
}
