#pragma once

/// A host where every file exists and nothing has an effect, for the model without sockets.

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cloud-hypervisor/double/host.hpp"

namespace caisson::cloud_hypervisor::tests {

class fake_host : public api_double::host {
public:
  std::vector<std::string> events; ///< "vm/booted"
  std::map<std::string, std::string> written;
  std::string snapshot_config; ///< what config.json of any directory holds

  std::unique_ptr<api_double::disk_image> open_disk(const std::string&, bool, int& error) override {
    error = 0;
    return std::make_unique<image>();
  }
  std::uint64_t file_size(const std::string&, bool, int& error) override {
    error = 0;
    return 16u << 20;
  }
  api_double::kernel_kind look_at_kernel(const std::string&, int& error) override {
    error = 0;
    return api_double::kernel_kind::elf;
  }
  bool is_directory(const std::string&) override { return true; }
  int write_new_file(const std::string& path, std::string_view text) override {
    written[path] = text;
    return 0;
  }
  std::string read_file(const std::string&, int& error) override {
    error = 0;
    return snapshot_config;
  }
  std::unique_ptr<api_double::console_sink> open_console(const std::string&, const std::string&, int& error) override {
    error = 0;
    return std::make_unique<sink>();
  }
  std::unique_ptr<api_double::vsock_listener> listen_vsock(const std::string&, int& error) override {
    error = 0;
    return std::make_unique<vsock>();
  }
  std::unique_ptr<api_double::held_open> connect_vhost_user(const std::string&, int& error) override {
    error = 0;
    return std::make_unique<api_double::held_open>();
  }
  std::unique_ptr<api_double::held_open> take_tap(const std::vector<int>&, int& error) override {
    error = 0;
    return std::make_unique<api_double::held_open>();
  }
  std::string random_mac() override { return "2e:00:00:00:00:01"; }
  void event(const std::string& source, const std::string& name,
             const std::vector<std::pair<std::string, std::string>>&) override {
    events.push_back(source + "/" + name);
  }

private:
  struct image : api_double::disk_image {
    bool lock(bool) override { return true; }
    std::uint64_t size_bytes() const override { return 16u << 20; }
    int resize(std::uint64_t) override { return 0; }
    std::string image_type() const override { return "Raw"; }
  };
  struct sink : api_double::console_sink {
    void write(std::string_view) override {}
    void hang_up() override {}
  };
  struct vsock : api_double::vsock_listener {
    void guest_is_up(std::function<std::unique_ptr<api_double::guest_channel>(std::uint32_t)>) override {}
    void freeze(bool) override {}
  };
};

} // namespace caisson::cloud_hypervisor::tests
