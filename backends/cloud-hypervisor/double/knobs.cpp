#include "backends/cloud-hypervisor/double/knobs.hpp"

#include <charconv>
#include <functional>

namespace caisson::cloud_hypervisor::api_double {
namespace {

bool number(std::string_view text, std::uint64_t& out) {
  const auto [at, problem] = std::from_chars(text.data(), text.data() + text.size(), out);
  return !text.empty() && problem == std::errc{} && at == text.data() + text.size();
}

using setter = std::function<bool(knobs&, std::string_view)>;

setter count(std::uint32_t knobs::*member) {
  return [member](knobs& k, std::string_view text) {
    std::uint64_t n = 0;
    if (!number(text, n) || n > std::numeric_limits<std::uint32_t>::max())
      return false;
    k.*member = static_cast<std::uint32_t>(n);
    return true;
  };
}

setter mib(std::uint64_t knobs::*member) {
  return [member](knobs& k, std::string_view text) {
    std::uint64_t n = 0;
    if (!number(text, n) || n > std::numeric_limits<std::uint64_t>::max() >> 20)
      return false;
    k.*member = n << 20;
    return true;
  };
}

setter yes(bool knobs::*member) {
  return [member](knobs& k, std::string_view text) {
    k.*member = text == "1";
    return text == "1" || text == "0";
  };
}

/// One word turns it off.
setter off(bool knobs::*member, std::string_view word) {
  return [member, word](knobs& k, std::string_view text) {
    if (text == word)
      k.*member = false;
    return text == word;
  };
}

setter call(reply_fault knobs::*member) {
  return [member](knobs& k, std::string_view text) {
    auto& fault = k.*member;
    const auto colon = text.find(':');
    std::uint64_t n = 0;
    if (colon != text.npos && (!number(text.substr(colon + 1), n) || n == 0 || n > 1'000'000))
      return false;
    fault = {std::string{text.substr(0, colon)}, static_cast<std::uint32_t>(n), 0};
    return !fault.endpoint.empty();
  };
}

const std::map<std::string, setter, std::less<>>& setters() {
  static const std::map<std::string, setter, std::less<>> all{
      {"guest", off(&knobs::guest, "none")},
      {"guest_boot_ms", count(&knobs::guest_boot_ms)},
      {"agent", off(&knobs::agent, "silent")},
      {"guest_ack_ms", count(&knobs::guest_ack_ms)},
      {"guest_ack", off(&knobs::ejects, "never")},
      {"remove_device", off(&knobs::ejects_devices, "never")},
      {"early_removal", off(&knobs::early_removal, "hangs")},
      {"virtio_mem", off(&knobs::virtio_mem_driver, "no_driver")},
      {"virtio_mem_most", mib(&knobs::virtio_mem_most)},
      {"virtio_mem_floor", mib(&knobs::virtio_mem_floor)},
      {"virtio_mem_step_ms", count(&knobs::virtio_mem_step_ms)},
      {"balloon_most", mib(&knobs::balloon_most)},
      {"balloon_step_ms", count(&knobs::balloon_step_ms)},
      {"online_most", mib(&knobs::online_most)},
      {"online_cpus_most", count(&knobs::online_cpus_most)},
      {"power_button", off(&knobs::power_button, "ignored")},
      {"guest_panic_ms", count(&knobs::guest_panic_ms)},
      {"guest_poweroff_ms", count(&knobs::guest_poweroff_ms)},
      {"guest_reset_ms", count(&knobs::guest_reset_ms)},
      {"boot_delay_ms", count(&knobs::boot_delay_ms)},
      {"delay", call(&knobs::delay)},
      {"delay_ms", count(&knobs::delay_ms)},
      {"boot_fails", count(&knobs::boot_fails)},
      {"mmap_fails", count(&knobs::mmap_fails)},
      {"nested_state", off(&knobs::nested_state, "missing")},
      {"hugetlbfs", yes(&knobs::hugetlbfs)},
      {"vhost_timeout_ms", count(&knobs::vhost_timeout_ms)},
      {"drop_reply", call(&knobs::drop_reply)},
      {"exit_before_reply", call(&knobs::exit_before_reply)},
      {"crash", call(&knobs::crash)},
      {"hang", call(&knobs::hang)},
      {"garbage", call(&knobs::garbage)},
      {"partial", call(&knobs::partial)},
      {"slow", call(&knobs::slow)},
      {"slow_byte_ms", count(&knobs::slow_byte_ms)},
      {"full", yes(&knobs::full)},
      {"stale_socket", yes(&knobs::stale_socket)},
      {"events_lost", count(&knobs::events_lost)},
      {"arch",
       [](knobs& k, std::string_view text) {
         k.architecture = text;
         return text == "x86_64" || text == "aarch64";
       }},
  };
  return all;
}

} // namespace

bool reply_fault::strikes(std::string_view called) {
  if (endpoint.empty() || (endpoint != "*" && endpoint != called))
    return false;
  return ++seen == nth || nth == 0;
}

std::string knobs::set(std::string_view text) {
  const auto equals = text.find('=');
  const auto name = text.substr(0, equals);
  const auto value = equals == text.npos ? std::string_view{"1"} : text.substr(equals + 1);
  const auto it = setters().find(name);
  if (it == setters().end()) {
    std::string known;
    for (const auto& [n, s] : setters())
      known += (known.empty() ? "" : ", ") + n;
    return "there is no fault \"" + std::string{name} + "\"; known are " + known;
  }
  if (!it->second(*this, value))
    return "\"" + std::string{value} + "\" is no value of the fault " + it->first;
  return {};
}

std::string knobs::set_all(std::string_view list) {
  while (!list.empty()) {
    const auto comma = list.find(',');
    const auto one = list.substr(0, comma);
    list = comma == list.npos ? std::string_view{} : list.substr(comma + 1);
    if (one.empty())
      continue;
    if (auto problem = set(one); !problem.empty())
      return problem;
  }
  return {};
}

} // namespace caisson::cloud_hypervisor::api_double
