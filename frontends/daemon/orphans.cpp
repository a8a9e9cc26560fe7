#include "frontends/daemon/orphans.hpp"

#include <future>
#include <mutex>
#include <set>

namespace caisson::daemon {

struct orphans::state {
  std::mutex mutex;
  std::set<std::string> left;
  std::set<std::string> asked; // of those, being removed
};

orphans::orphans(engine::service& service, std::function<void(std::string_view)> log)
    : service_{service}, log_{std::move(log)}, state_{std::make_shared<state>()} {}

void orphans::look() {
  auto listed = std::make_shared<std::promise<void>>();
  auto done = listed->get_future();
  service_.list({}, [s = state_, listed](engine::outcome<v1::SandboxList> o) {
    if (auto* list = std::get_if<v1::SandboxList>(&o)) {
      std::lock_guard hold{s->mutex};
      for (const auto& sandbox : list->sandboxes())
        if (sandbox.owner() == "stream")
          s->left.insert(sandbox.id());
    }
    listed->set_value();
  });
  done.wait_for(std::chrono::seconds{10});
}

void orphans::sweep() {
  std::set<std::string> now;
  {
    std::lock_guard hold{state_->mutex};
    for (const auto& id : state_->left)
      if (state_->asked.insert(id).second)
        now.insert(id);
  }
  for (const auto& id : now) {
    v1::RemoveSandbox request;
    request.set_sandbox(id);
    request.set_force(true);
    service_.remove(request, [s = state_, log = log_, id](engine::outcome<v1::SandboxStatus> o) {
      const auto* failure = std::get_if<v1::Error>(&o);
      bool again = failure && failure->retryable();
      {
        std::lock_guard hold{s->mutex};
        s->asked.erase(id);
        if (!again)
          s->left.erase(id);
      }
      if (failure && failure->code() != "not_found")
        log("sandbox " + id + ", whose stream is gone, could not be removed: " + failure->text());
      else if (!failure)
        log("sandbox " + id + " is removed: the stream that it belonged to is gone");
    });
  }
}

bool orphans::any() const {
  std::lock_guard hold{state_->mutex};
  return !state_->left.empty();
}

} // namespace caisson::daemon
