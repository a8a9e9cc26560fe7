#include "backends/cloud-hypervisor/double/guest.hpp"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "guest/protocol/version.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

namespace sim = backends::simulated;

constexpr std::uint64_t balloon_step = 64u << 20;
constexpr std::uint32_t slots = 8;

sim::machine_shape shape_of(const guest_hardware& h) {
  sim::machine_shape s;
  s.boot_bytes = h.boot_bytes;
  s.max_bytes = h.boot_bytes + h.hotplug_bytes;
  s.boot_vcpus = std::max(h.boot_vcpus, 1u);
  s.max_vcpus = std::max(h.max_vcpus, s.boot_vcpus);
  s.dimm_slots = h.acpi && h.sees_dimms && h.hotplug_bytes > 0 ? slots : 0;
  s.virtio_mem = !h.acpi && h.hotplug_bytes > 0;
  return s;
}

sim::guest_habits habits_of(const knobs& k) {
  sim::guest_habits g;
  g.notice_ms = {k.guest_ack_ms, k.guest_ack_ms};
  g.online_ms = {k.virtio_mem_step_ms, k.virtio_mem_step_ms};
  g.leave_ms = {k.guest_ack_ms, k.guest_ack_ms};
  g.power_off_ms = {k.guest_ack_ms, k.guest_ack_ms};
  g.online_at_most_bytes = k.online_most;
  g.online_at_most_cpus = k.online_cpus_most;
  g.virtio_mem_floor_bytes = k.virtio_mem_floor;
  return g;
}

} // namespace

/// The agent's side of one connection.
class guest::agent_channel : public guest_channel {
public:
  explicit agent_channel(guest& of) : of_{&of} {}
  ~agent_channel() override { agent_channel::closed(); }

  bool receive(std::string_view bytes) override {
    return !of_ || of_->agent_->receive(std::as_bytes(std::span{bytes.data(), bytes.size()}));
  }

  std::string take_output() override {
    if (!of_)
      return {};
    const auto bytes = of_->agent_->take_output();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  void closed() override {
    if (auto* g = std::exchange(of_, nullptr)) {
      g->channel_ = nullptr;
      g->agent_->host_left();
    }
  }

  [[nodiscard]] bool over() const override { return !of_; }

  void forget() { of_ = nullptr; }

private:
  guest* of_;
};

guest::guest(const guest_hardware& hardware, const knobs& k, sim::timeline& time, telling tell)
    : hardware_{hardware}, knobs_{k}, tell_{std::move(tell)},
      machine_{std::make_shared<sim::model_machine>(shape_of(hardware), habits_of(k), time, 1)} {}

guest::~guest() {
  if (channel_)
    channel_->forget();
  machine_->on_news = nullptr;
  machine_->on_guest_change = nullptr;
  machine_->stop();
}

void guest::after(std::uint32_t ms, std::function<void()> what) {
  machine_->after(std::chrono::milliseconds{ms}, std::move(what));
}

void guest::power_on() {
  if (!knobs_.guest)
    return;
  tell_.console("[    0.000000] Linux version 6.1.0-simulated (caisson@double)\n"
                "[    0.000000] Command line: " +
                hardware_.command_line + "\n");
  after(knobs_.guest_boot_ms, [this] { come_up(); });
}

void guest::come_up() {
  up_ = true;
  if (knobs_.agent)
    agent_ = std::make_unique<sim::model_guest>(*machine_, knobs_.architecture);
  machine_->on_guest_change = [this] {
    if (agent_)
      agent_->machine_changed();
  };
  machine_->on_news = [this](const sim::machine_news& n) {
    if (n.what == sim::machine_news::kind::guest_stopped)
      tell_.powered_off();
    if (n.what == sim::machine_news::kind::guest_panicked)
      tell_.panicked();
  };
  if (agent_)
    agent_->on_output = [this] {
      if (channel_ && channel_->on_ready)
        channel_->on_ready();
    };
  machine_->guest_is_up();
  tell_.console("[    0.512000] Run /init as init process\n"
                "caisson-agent: ready\n");
  for (auto& what : std::exchange(waiting_, {}))
    after(knobs_.guest_ack_ms, std::move(what));
  if (knobs_.guest_panic_ms)
    after(knobs_.guest_panic_ms, [this] { machine_->panic(); });
  if (knobs_.guest_poweroff_ms)
    after(knobs_.guest_poweroff_ms, [this] { machine_->power_off(); });
  if (knobs_.guest_reset_ms)
    after(knobs_.guest_reset_ms, [this] { tell_.reset(); });
  move_balloon();
  tell_.up();
}

void guest::pause() {
  machine_->pause();
}

void guest::resume() {
  machine_->resume();
  if (tell_.moved)
    tell_.moved();
}

/// Now if it runs, else once it does.
void guest::react(std::function<void()> what) {
  if (up_)
    after(knobs_.guest_ack_ms, std::move(what));
  else
    waiting_.push_back(std::move(what));
}

void guest::dimm_added(std::uint64_t bytes) {
  if (hardware_.sees_dimms)
    machine_->plug_dimm("dimm" + std::to_string(dimms_++), bytes);
}

void guest::virtio_mem_requested(std::uint64_t bytes) {
  if (!knobs_.virtio_mem_driver)
    return;
  const auto most = knobs_.virtio_mem_most - knobs_.virtio_mem_most % machine_->shape().granule_bytes;
  machine_->request_virtio_mem(std::min(bytes, most));
}

void guest::vcpus_added(std::uint32_t present) {
  machine_->set_vcpus(present);
}

void guest::eject_vcpus(std::uint32_t target, std::function<void()> done) {
  if (!knobs_.ejects)
    return;
  react([this, target, done = std::move(done)] {
    machine_->set_online_cpus(target);
    machine_->set_vcpus(target);
    done();
  });
}

void guest::eject_device(std::function<void()> done) {
  if (knobs_.ejects && knobs_.ejects_devices)
    react(std::move(done));
}

void guest::set_balloon(std::uint64_t bytes) {
  balloon_target_ = bytes;
  if (up_)
    move_balloon();
}

void guest::move_balloon() {
  const auto goal = std::min({balloon_target_, knobs_.balloon_most, hardware_.boot_bytes / 2});
  if (balloon_moves_ || balloon_ == goal)
    return;
  balloon_moves_ = true;
  after(knobs_.balloon_step_ms, [this, goal] {
    balloon_moves_ = false;
    if (balloon_ < goal)
      balloon_ += std::min(balloon_step, goal - balloon_);
    else
      balloon_ -= std::min(balloon_step, balloon_ - goal);
    move_balloon();
  });
}

void guest::power_button() {
  if (knobs_.power_button)
    react([this] { machine_->power_off(); });
}

std::unique_ptr<guest_channel> guest::connect(std::uint32_t port) {
  if (!agent_ || port != guest_protocol::vsock_port)
    return nullptr;
  if (auto* old = channel_) {
    auto ready = std::move(old->on_ready);
    old->closed();
    if (ready)
      ready();
  }
  auto channel = std::make_unique<agent_channel>(*this);
  channel_ = channel.get();
  return channel;
}

} // namespace caisson::cloud_hypervisor::api_double
