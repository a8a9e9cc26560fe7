#include "tests/simulation/house.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "actors/budget/budget_keeper.hpp"
#include "actors/config/config.hpp"
#include "actors/engine/engine.hpp"
#include "actors/events/events.hpp"
#include "actors/journal/journal.hpp"
#include "backends/simulated/provider.hpp"

namespace caisson::tests {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

// The journal as a killed engine leaves it: what it writes afterwards is not there.
class fenced_store final : public journal_store {
public:
  fenced_store(journal_store_ptr store, std::shared_ptr<fence> f) : store_{std::move(store)}, fence_{std::move(f)} {}
  outcome<v1::JournalRecorded> record(const v1::JournalRecord& what) override {
    if (fence_->down)
      return error_message(ec::journal, "the engine was killed");
    return store_->record(what);
  }
  outcome<v1::JournalContents> replay() override { return store_->replay(); }
  outcome<v1::EventBatch> events(const v1::EventsFrom& from) override { return store_->events(from); }
  std::uint64_t last_seq() const override { return store_->last_seq(); }
  const std::string& path() const override { return store_->path(); }

private:
  journal_store_ptr store_;
  std::shared_ptr<fence> fence_;
};

// Stands for actors/host/: a disk of names.
host_actor::behavior_type model_host(host_actor::pointer, house* h, std::shared_ptr<fence> f) {
  return {
      [](const v1::MeasureProcess&) { return v1::ProcessFigures{}; },
      [h](const v1::MeasureHost&) {
        v1::HostFigures figures;
        figures.set_total_bytes(h->available_bytes * 2);
        figures.set_available_bytes(h->available_bytes); // model machines touch nothing
        return figures;
      },
      [](const v1::FollowCgroup&) { return v1::CgroupFollowed{}; },
      [h, f](const v1::PrepareDirectory& m) {
        if (!f->down)
          h->directories.insert(m.path());
        return v1::Empty{};
      },
      [h, f](const v1::RemoveDirectory& m) {
        if (!f->down)
          h->directories.erase(m.path());
        return v1::Empty{};
      },
      [](const v1::SaveText&) { return v1::Empty{}; },
  };
}

// A configuration as people write it, read by the real config actor.
struct configuration_file {
  explicit configuration_file(const std::string& name, const std::string& more = {}) {
    path = (std::filesystem::temp_directory_path() /
            ("caisson-simulation-" + std::to_string(::getpid()) + name + ".toml"))
               .string();
    std::ofstream out{path};
    out << "[hypervisor.qemu]\n"
           "default_memory = 256\n"
           "default_maxmemory = 4096\n"
           "memory_slots = 10\n"
           "default_vcpus = 1\n"
           "default_maxvcpus = 4\n"
        << more;
    out.close();
    std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  }
  ~configuration_file() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  std::string path;
};

config::host_facts facts() {
  static const configuration_file file{""};
  auto f = config::read_host_facts();
  f.memory_bytes = std::uint64_t{64} << 30;
  f.cpus = 8;
  f.architecture = "x86_64";
  f.backends.push_back({"simulated", {}});
  f.backends.push_back({"qemu", {}});
  f.search_paths = {file.path};
  return f;
}

} // namespace

const std::string& autosize_config_path() {
  static const configuration_file file{"-autosize",
                                       "[runtime.caisson]\nmemory_autosize = true\nmemory_autosize_ceiling = 2048\n"
                                       "memory_autosize_step = 64\nmemory_autosize_headroom = 96\n"
                                       "memory_autosize_cool_down = 10\n"};
  return file.path;
}

house::house(std::uint64_t s, const backends::simulated::fault_plan& plan)
    : seed{s}, world{std::make_shared<backends::simulated::world>(plan)} {
  auto opened = open_journal_store(":memory:");
  if (auto* why = std::get_if<v1::Error>(&opened))
    throw std::runtime_error(why->text());
  journal = std::get<journal_store_ptr>(std::move(opened));
}

engine_run::engine_run(house& h, std::uint64_t seed) : house_{h}, sys_{std::make_unique<deterministic_system>(seed)} {
  auto& system = sys_->system();
  auto found = h.journal->replay();
  if (auto* why = std::get_if<v1::Error>(&found))
    throw std::runtime_error(why->text());
  auto contents = std::get<v1::JournalContents>(std::move(found));
  provider_ = backends::simulated::make_simulated(system, h.world);

  engine_settings set;
  auto store = std::make_shared<fenced_store>(h.journal, fence_);
  set.sandbox.journal = system.spawn(journal, store);
  journal_ = caf::actor_cast<caf::actor>(set.sandbox.journal);
  events_settings es;
  es.last_seq = contents.last_seq();
  set.sandbox.events = system.spawn(events, set.sandbox.journal, es);
  events_ = caf::actor_cast<caf::actor>(set.sandbox.events);
  set.sandbox.host = system.spawn(model_host, &h, fence_);
  host_ = caf::actor_cast<caf::actor>(set.sandbox.host);
  budget::settings budget_set;
  budget_set.host = set.sandbox.host;
  set.sandbox.budget = system.spawn(budget::budget_keeper, budget_set);
  set.sandbox.modelled_memory_counts = true;
  budget_ = caf::actor_cast<caf::actor>(set.sandbox.budget);
  set.sandbox.random = [dice = std::make_shared<backends::simulated::dice>(seed ^ 0x5EED)] { return dice->next() | 1; };
  set.sandbox.now_unix_ms = [this] { return house_.unix_ms + duration_cast<milliseconds>(sys_->now()).count(); };
  set.sandbox.host_boot_id = "one";
  config_settings config;
  config.host = facts();
  set.config = system.spawn(config_keeper, std::move(config));
  config_ = caf::actor_cast<caf::actor>(set.config);
  set.provider = [this](const std::string& name, std::string& why) -> backends::provider* {
    if (name == "simulated")
      return provider_.get();
    why = "only \"simulated\" is here";
    return nullptr;
  };
  set.guest = [](const std::string&, const std::string&, sandbox::guest_assets& into) -> caf::error {
    into = {"/guest/vmlinux", "/guest/bzImage", "/guest/initramfs.cpio", "console=ttyS0"};
    return {};
  };
  set.sweep = {"simulated"};
  set.about.set_run_directory("/run/simulation");
  engine_ = system.spawn(engine_keeper, std::move(set), std::move(contents));
}

void engine_run::kill() {
  fence_->down = true;
  house_.world->detach_all();
}

engine_run::~engine_run() {
  const bool killed = fence_->down;
  house_.unix_ms += duration_cast<milliseconds>(sys_->now()).count();
  for (const auto& a : {caf::actor_cast<caf::actor>(engine_), config_, events_, budget_, host_, journal_})
    caf::anon_send_exit(a, caf::exit_reason::user_shutdown);
  engine_ = nullptr;
  try {
    sys_->end_actors();
  } catch (const std::exception& e) {
    fprintf(stderr, "%s engine: %s\n", killed ? "a killed" : "an ended", e.what());
  }
  provider_.reset();
}

} // namespace caisson::tests
