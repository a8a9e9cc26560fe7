#pragma once

/// What the conformance body runs on: one registry line in an environment of its own, asked and answered as the
/// contract says, from a test's thread.

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "backends/simulated/world.hpp"
#include "reactor/reactor.hpp"
#include "tests/conformance/guest_client.hpp"
#include "tests/conformance/lines.hpp"

namespace caisson::tests {

/// A value or an error.
template <class T> struct reply {
  std::optional<T> value;
  caf::error error;
  const T* operator->() const { return &*value; }
  explicit operator bool() const { return value.has_value(); }
  std::string text() const {
    return value ? value->ShortDebugString() : to_string(code_of(error)) + ": " + text_of(error);
  }
};

/// What a VM's listener has heard.
struct news_box {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<v1::VmEvent> heard;

  /// Waits for an event that fits. False: none came in that time.
  bool await(std::chrono::seconds at_most, const std::function<bool(const v1::VmEvent&)>& fits);
  bool await(std::chrono::seconds at_most, v1::VmEvent::Kind kind) {
    return await(at_most, [kind](const v1::VmEvent& e) { return e.kind() == kind; });
  }
};

/// The one place where it is looked at for all kinds and verbs: fails the running test where `code` is none that
/// backends/backend.hpp allows as an answer to `message` ("CreateVm").
void expect_documented(std::string_view message, ec code, const std::string& text);

/// Whose VMM stops, or is killed, before it does anything, where rig::vmm_that_fails_at_start() is their VMM.
inline constexpr const char* stops_at_start = "stops-at-start";
inline constexpr const char* dies_at_start = "dies-at-start";

class rig {
public:
  explicit rig(const kind& k);
  /// Looks whether anything of this rig's backend and VMs is still there: a failure of the test that made it.
  ~rig();
  rig(const rig&) = delete;
  rig& operator=(const rig&) = delete;

  const kind& what() const { return kind_; }
  const place& here() const { return place_; }
  /// For guest work: live guests run emulated on a shared machine.
  std::chrono::seconds patience() const { return std::chrono::seconds{place_.process ? 180 : 20}; }

  /// A VM's specification that this line can make: 256 MiB at boot, 1 vCPU at boot.
  v1::VmSpec spec(const std::string& id, std::uint64_t max_bytes, std::uint32_t slots, std::uint32_t max_vcpus);
  backend_actor backend(const std::string& id, std::shared_ptr<news_box> news);

  template <class T, class Message> reply<T> ask(const backend_actor& to, const Message& m) {
    caf::scoped_actor self{*system_};
    reply<T> out;
    self->request(to, std::chrono::seconds{200}, m)
        .receive([&](const T& value) { out.value = value; }, [&](const caf::error& why) { out.error = why; });
    if (!out)
      expect_documented(Message::descriptor()->name(), code_of(out.error), out.text());
    return out;
  }

  /// Sends without waiting for the answer; what is asked afterwards comes after it. `then` runs on a thread of the actor
  /// system.
  template <class T, class Message>
  void ask_later(const backend_actor& to, const Message& m, std::function<void(reply<T>)> then) {
    auto sent = std::make_shared<std::promise<void>>();
    auto is_sent = sent->get_future();
    system_->spawn([to, m, then, sent](caf::event_based_actor* self) {
      self->request(to, std::chrono::seconds{200}, m)
          .then(
              [then](const T& value) {
                then({value, {}});
              },
              [then](const caf::error& why) {
                reply<T> out{std::nullopt, why};
                expect_documented(Message::descriptor()->name(), code_of(why), out.text());
                then(std::move(out));
              });
      sent->set_value();
    });
    is_sent.wait();
  }

  reply<v1::Capabilities> describe();
  reply<v1::VmObserved> inspect(const backend_actor& b, const std::string& id);
  reply<v1::VmObserved> destroy(const backend_actor& b, const std::string& id);
  reply<v1::VmList> list(const backend_actor& b);
  std::unique_ptr<guest_client> guest(const v1::VmObserved& vm);

  /// The backend goes, its VMs stay; another one is made in the same directories.
  void restart();
  /// Ends the VMM as an accident would.
  void kill_vmm(const std::string& id, const v1::VmObserved& vm);
  /// The VMM does nothing any more until it is let go: SIGSTOP, or what stands for it.
  void hold(const v1::VmObserved& vm);
  void let_go(const v1::VmObserved& vm);
  /// A program that is this kind's VMM, except for the two sandboxes above. "": no spec names the VMM here.
  std::string vmm_that_fails_at_start() const;
  /// A raw image of 1 MiB.
  std::string image(const std::string& name);
  /// Makes a tap that stays as long as the rig; "" and `why_not` where the host does not let us.
  std::string tap(std::string& why_not);
  backends::simulated::world* world() { return world_.get(); }

private:
  void make_provider();

  std::string left_behind() const;

  kind kind_;
  place place_;
  std::string root_, run_;
  std::unique_ptr<reactor::reactor> reactor_;
  std::unique_ptr<caf::actor_system_config> config_;
  std::unique_ptr<caf::actor_system> system_;
  std::shared_ptr<backends::simulated::world> world_;
  std::unique_ptr<backends::provider> provider_;
  std::vector<vm_listener> listeners_;
  std::optional<v1::Capabilities> capabilities_;
  std::vector<std::string> taps_;
  int tap_count_ = 0;
};

} // namespace caisson::tests
