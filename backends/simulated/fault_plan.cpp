#include "backends/simulated/fault_plan.hpp"

#include <charconv>
#include <functional>
#include <map>

namespace caisson::backends::simulated {
namespace {

template <class T> bool read(std::string_view text, T& out) {
  const auto end = text.data() + text.size();
  const auto [at, problem] = std::from_chars(text.data(), end, out);
  return problem == std::errc{} && at == end;
}

bool read(std::string_view text, span_ms& out) {
  const auto dots = text.find("..");
  if (dots == std::string_view::npos)
    return read(text, out.least) && read(text, out.most);
  return read(text.substr(0, dots), out.least) && read(text.substr(dots + 2), out.most) && out.least <= out.most;
}

bool read_mib(std::string_view text, std::uint64_t& out) {
  std::uint64_t mib = 0;
  if (!read(text, mib) || mib > (std::uint64_t{1} << 40))
    return false;
  out = mib << 20;
  return true;
}

bool read_chance(std::string_view text, double& out) {
  return read(text, out) && out >= 0 && out <= 1;
}

bool read_flag(std::string_view text, bool& out) {
  out = text == "1";
  return text == "0" || text == "1";
}

bool set(fault_plan& p, std::string_view key, std::string_view value) {
  const std::map<std::string_view, span_ms*> spans{{"verb_ms", &p.verb_ms},     {"boot_ms", &p.boot_ms},
                                                   {"notice_ms", &p.notice_ms}, {"online_ms", &p.online_ms},
                                                   {"leave_ms", &p.leave_ms},   {"power_off_ms", &p.power_off_ms},
                                                   {"slow_ms", &p.slow_ms}};
  const std::map<std::string_view, double*> chances{{"slow", &p.slow},
                                                    {"refuse", &p.refuse},
                                                    {"lost", &p.lost},
                                                    {"late", &p.late},
                                                    {"die", &p.die},
                                                    {"panic", &p.panic},
                                                    {"boot_never", &p.boot_never},
                                                    {"boot_panic", &p.boot_panic},
                                                    {"agent_silent", &p.agent_silent},
                                                    {"partial", &p.partial},
                                                    {"stuck", &p.stuck},
                                                    {"dimm_refused", &p.dimm_refused},
                                                    {"dimm_ignored", &p.dimm_ignored}};
  const std::map<std::string_view, bool*> flags{{"dimm", &p.dimm},
                                                {"virtio_mem", &p.virtio_mem},
                                                {"dimm_unplug", &p.dimm_unplug},
                                                {"virtio_mem_shrink", &p.virtio_mem_shrink},
                                                {"vcpu_unplug", &p.vcpu_unplug},
                                                {"pause", &p.can_pause}};
  if (auto it = spans.find(key); it != spans.end())
    return read(value, *it->second);
  if (auto it = chances.find(key); it != chances.end())
    return read_chance(value, *it->second);
  if (auto it = flags.find(key); it != flags.end())
    return read_flag(value, *it->second);
  if (key == "seed")
    return read(value, p.seed);
  if (key == "dimm_slots")
    return read(value, p.dimm_slots);
  if (key == "online_at_most_cpus")
    return read(value, p.online_at_most_cpus);
  if (key == "online_at_most_mib")
    return read_mib(value, p.online_at_most_bytes);
  if (key == "virtio_mem_floor_mib")
    return read_mib(value, p.virtio_mem_floor_bytes);
  if (key == "die_at") {
    const auto colon = value.find(':');
    if (colon == std::string_view::npos)
      return false;
    p.die_at_verb = value.substr(0, colon);
    return read(value.substr(colon + 1), p.die_at_count);
  }
  return false;
}

} // namespace

fault_plan fault_plan::calm() const {
  fault_plan p;
  p.seed = seed;
  p.verb_ms = verb_ms, p.boot_ms = boot_ms, p.notice_ms = notice_ms, p.online_ms = online_ms, p.leave_ms = leave_ms;
  p.power_off_ms = power_off_ms, p.slow_ms = slow_ms;
  p.dimm = dimm, p.virtio_mem = virtio_mem, p.dimm_unplug = dimm_unplug, p.virtio_mem_shrink = virtio_mem_shrink;
  p.vcpu_unplug = vcpu_unplug, p.can_pause = can_pause, p.dimm_slots = dimm_slots;
  p.dimm_block_bytes = dimm_block_bytes, p.virtio_mem_granule_bytes = virtio_mem_granule_bytes;
  return p;
}

fault_plan parse_fault_plan(std::string_view text, std::string& problem) {
  fault_plan p;
  while (!text.empty()) {
    const auto comma = text.find(',');
    const auto part = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
    if (part.empty())
      continue;
    const auto equals = part.find('=');
    if (equals == std::string_view::npos || !set(p, part.substr(0, equals), part.substr(equals + 1))) {
      problem = "\"" + std::string{part} +
                "\" is not a simulated fault; expected key=value as listed in "
                "backends/simulated/fault_plan.hpp";
      return {};
    }
  }
  return p;
}

fault_plan seeded_fault_plan(std::uint64_t seed) {
  dice d{seed * 0x2545F4914F6CDD1Du + 1};
  fault_plan p;
  p.seed = seed;
  const auto some = [&](double one_in, double most) {
    return d.chance(one_in) ? most * static_cast<double>(d.between(1, 100)) / 100.0 : 0.0;
  };
  p.slow = some(0.4, 0.2);
  p.refuse = some(0.3, 0.1);
  p.lost = some(0.3, 0.1);
  p.late = some(0.3, 0.1);
  p.die = some(0.3, 0.05);
  p.panic = some(0.3, 0.05);
  p.boot_never = some(0.2, 0.2);
  p.boot_panic = some(0.2, 0.2);
  p.agent_silent = some(0.2, 0.2);
  p.partial = some(0.4, 0.5);
  p.stuck = some(0.4, 0.5);
  p.dimm_refused = some(0.4, 0.5);
  p.dimm_ignored = some(0.2, 0.3);
  p.vcpu_unplug = d.chance(0.5);
  p.virtio_mem = d.chance(0.7);
  p.dimm_unplug = d.chance(0.8);
  if (d.chance(0.3))
    p.dimm_slots = 8;
  return p;
}

} // namespace caisson::backends::simulated
