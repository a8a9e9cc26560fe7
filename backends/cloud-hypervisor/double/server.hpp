#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "backends/cloud-hypervisor/double/http_wire.hpp"
#include "backends/cloud-hypervisor/double/knobs.hpp"
#include "backends/cloud-hypervisor/double/loop.hpp"
#include "backends/cloud-hypervisor/double/unique_fd.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// The API's server: one request after the other over all connections, ten connections at most, no connection closed
/// from here but those that have hung up by half. While a request takes its time nothing else is read or accepted.
class api_server {
public:
  struct telling {
    std::function<reply(request)> handle;
    /// The process ends with this code; `clean`: the socket's file is removed.
    std::function<void(int code, bool clean)> exit;
  };

  api_server(loop& on, unique_fd listener, std::size_t body_limit_bytes, knobs& faults, telling tell);
  ~api_server();

private:
  struct connection {
    unique_fd fd;
    http_input input;
    std::deque<std::string> out;
    std::uint32_t in_flight = 0;
    bool closed = false, slow = false, last = false;
  };
  using id = std::uint64_t;

  void accept();
  void on_event(id which, short events);
  void read(id which, connection& c);
  void write(id which, connection& c);
  void write_slowly(id which);
  void break_off(id which, connection& c);
  void drop(id which);
  void next_request();
  void perform(id which, request r);
  void deliver(id which, const std::string& endpoint, const reply& r);
  void hold(bool on);
  void follow(connection& c);

  loop& loop_;
  unique_fd listener_;
  std::size_t limit_;
  knobs& faults_;
  telling tell_;
  std::map<id, connection> connections_;
  std::deque<std::pair<id, request>> requests_;
  id last_ = 0;
  bool held_ = false;
};

} // namespace caisson::cloud_hypervisor::api_double
