#pragma once

/// libvirt's handles with owners, its errors as failures, and the time that goes into its calls.

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "backends/qemu/failure.hpp"

namespace caisson::qemu {

struct domain_release {
  void operator()(virDomainPtr d) const { virDomainFree(d); }
};
using domain_handle = std::unique_ptr<virDomain, domain_release>;

struct text_release {
  void operator()(char* s) const { std::free(s); }
};
using library_text = std::unique_ptr<char, text_release>;

/// Time that this thread has spent inside libvirt since reset().
class library_clock {
public:
  static std::uint64_t& microseconds() {
    thread_local std::uint64_t spent = 0;
    return spent;
  }
};

/// `auto domain = in_library([&] { return virDomainCreateXML(...); });`
template <class Call>
auto in_library(Call call) {
  struct stopwatch {
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    ~stopwatch() {
      library_clock::microseconds() += static_cast<std::uint64_t>(
          std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count());
    }
  } watch;
  return call();
}

/// The last error of this thread as a failure: a row of messages/error.hpp, and libvirt's own words.
inline failure library_failure(const std::string& doing) {
  auto* e = virGetLastError();
  std::string words = e && e->message ? e->message : "no reason given";
  std::string code = "backend_refused";
  switch (e ? e->code : VIR_ERR_OK) {
  case VIR_ERR_NO_DOMAIN:
  case VIR_ERR_OPERATION_INVALID: code = "vmm_died"; break;
  case VIR_ERR_OPERATION_TIMEOUT:
  case VIR_ERR_AGENT_UNRESPONSIVE: code = "outcome_unknown"; break;
  case VIR_ERR_NO_MEMORY: code = "host_resources"; break;
  case VIR_ERR_CONFIG_UNSUPPORTED:
  case VIR_ERR_NO_SUPPORT:
  case VIR_ERR_OPERATION_UNSUPPORTED: code = "unsupported"; break;
  case VIR_ERR_SYSTEM_ERROR: code = "host_io"; break;
  case VIR_ERR_RPC:
  case VIR_ERR_NO_CONNECT: code = "backend_lost"; break;
  default: break;
  }
  return failure(code, doing + ": libvirt says: " + words);
}

} // namespace caisson::qemu
