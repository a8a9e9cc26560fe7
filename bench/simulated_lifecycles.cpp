// simulated_lifecycles [--counts 100,1000,10000] [--in-flight 64]: what the engine itself costs, without a hypervisor.
//
// For each count a process of its own opens an engine whose sandboxes run on the simulated backend (no delays), creates
// that many, plugs 128 MiB into each and waits until the guests confirm, measures the memory that all of them take, and
// removes them. Prints JSON: lifecycles a second, bytes a sandbox, and the exponents of time and memory over the counts
// (1.0 is linear). The state directory is on a tmpfs where there is one, so that the disk's fsync is not what is
// measured.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/service.hpp"

namespace {

namespace fs = std::filesystem;
using namespace caisson;
using clock_type = std::chrono::steady_clock;
using nlohmann::json;

constexpr std::uint64_t boot_bytes = std::uint64_t{256} << 20;
constexpr std::uint64_t grown_bytes = boot_bytes + (std::uint64_t{128} << 20);

double seconds_since(clock_type::time_point start) {
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

std::uint64_t pss_bytes() {
  std::ifstream in{"/proc/self/smaps_rollup"};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("Pss:"))
      return std::strtoull(line.c_str() + 4, nullptr, 10) * 1024;
  return 0;
}

// Starts `count` pieces of work, at most `in_flight` at once; each calls its argument when it has ended.
class crowd {
public:
  using work = std::function<void(std::size_t index, std::function<void()> ended)>;

  static void run(std::size_t count, std::size_t in_flight, const work& start) {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t open = 0;
    for (std::size_t i = 0; i < count; ++i) {
      {
        std::unique_lock lock{mutex};
        changed.wait(lock, [&] { return open < in_flight; });
        ++open;
      }
      start(i, [&] {
        std::lock_guard lock{mutex};
        --open;
        changed.notify_all();
      });
    }
    std::unique_lock lock{mutex};
    changed.wait(lock, [&] { return open == 0; });
  }
};

template <class T> const T& must(const engine::outcome<T>& o, const char* doing) {
  if (const auto* why = std::get_if<v1::Error>(&o)) {
    std::cerr << "simulated_lifecycles: " << doing << ": " << why->text() << '\n';
    std::_Exit(1);
  }
  return std::get<T>(o);
}

struct bench {
  explicit bench(std::size_t in_flight_) : in_flight{in_flight_} {
    auto pattern = (fs::exists("/dev/shm") ? std::string{"/dev/shm"} : fs::temp_directory_path().string()) +
                   "/caisson-bench-XXXXXX";
    if (!::mkdtemp(pattern.data())) {
      std::cerr << "simulated_lifecycles: cannot make a directory like " << pattern << '\n';
      std::_Exit(1);
    }
    root = pattern;
    fs::create_directory(root + "/guest");
    std::ofstream{root + "/guest/vmlinux"} << "-";
    std::ofstream{root + "/guest/initramfs.cpio"} << "-";
    std::ofstream{root + "/guest/manifest.json"} << "{}";
    std::ofstream{root + "/configuration.toml"} << "[hypervisor.qemu]\ndefault_memory = 256\ndefault_maxmemory = 1024\n"
                                                   "default_vcpus = 1\ndefault_maxvcpus = 2\n";
    fs::permissions(root + "/configuration.toml", fs::perms::owner_read | fs::perms::owner_write);
    engine::options o;
    o.state_directory = root + "/state";
    o.run_directory = root + "/run";
    o.cache_directory = root + "/cache";
    o.guest_directory = root + "/guest";
    auto opened = engine::open(std::move(o));
    if (auto* why = std::get_if<v1::Error>(&opened)) {
      std::cerr << "simulated_lifecycles: " << why->text() << '\n';
      std::_Exit(1);
    }
    service = std::get<std::unique_ptr<engine::service>>(std::move(opened));
  }

  ~bench() {
    service.reset();
    std::error_code ignored;
    fs::remove_all(root, ignored);
  }

  void create(std::size_t count) {
    crowd::run(count, in_flight, [&](std::size_t i, std::function<void()> ended) {
      v1::CreateSandbox m;
      m.set_name("s" + std::to_string(i));
      m.set_hypervisor("simulated");
      m.set_config_path(root + "/configuration.toml");
      m.set_memory_method(v1::MEMORY_METHOD_VIRTIO_MEM);
      service->create(m, [ended](engine::outcome<v1::SandboxStatus> o) {
        must(o, "create");
        ended();
      });
    });
  }

  void grow(std::size_t count) {
    crowd::run(count, in_flight, [&](std::size_t i, std::function<void()> ended) {
      v1::ResizeSandbox m;
      m.set_sandbox("s" + std::to_string(i));
      m.set_memory_bytes(grown_bytes);
      service->resize(m, [this, ended](engine::outcome<v1::Operation> o) {
        v1::WaitOperation w;
        w.set_operation_id(must(o, "resize").id());
        w.set_wait_ms(60'000);
        service->wait_operation(w, [ended](engine::outcome<v1::Operation> end) {
          if (const auto& op = must(end, "wait"); op.state() != v1::OPERATION_STATE_CONVERGED) {
            std::cerr << "simulated_lifecycles: a resize ended " << v1::OperationState_Name(op.state()) << ": "
                      << op.why() << '\n';
            std::_Exit(1);
          }
          ended();
        });
      });
    });
  }

  void remove(std::size_t count) {
    crowd::run(count, in_flight, [&](std::size_t i, std::function<void()> ended) {
      v1::RemoveSandbox m;
      m.set_sandbox("s" + std::to_string(i));
      m.set_force(true);
      service->remove(m, [ended](engine::outcome<v1::SandboxStatus> o) {
        must(o, "rm");
        ended();
      });
    });
  }

  std::size_t in_flight;
  std::string root;
  std::unique_ptr<engine::service> service;
};

json measure(std::size_t count, std::size_t in_flight) {
  ::setenv("CAISSON_SIMULATED_FAULTS", "verb_ms=0,boot_ms=0,notice_ms=0,online_ms=0,leave_ms=0,power_off_ms=0", 0);
  bench b{in_flight};
  b.create(1);
  b.grow(1);
  b.remove(1);
  const auto before = pss_bytes();
  const auto start = clock_type::now();
  b.create(count);
  const auto created = seconds_since(start);
  b.grow(count);
  const auto grown = seconds_since(start);
  const auto with_all = pss_bytes();
  const auto removing = clock_type::now();
  b.remove(count);
  const auto removed = seconds_since(removing);
  const double whole = grown + removed;
  return {{"sandboxes", count},
          {"lifecycles_per_second", static_cast<double>(count) / whole},
          {"seconds", whole},
          {"create_seconds", created},
          {"resize_seconds", grown - created},
          {"remove_seconds", removed},
          {"pss_bytes", with_all},
          {"pss_bytes_added", with_all > before ? with_all - before : 0},
          {"bytes_per_sandbox", (with_all > before ? with_all - before : 0) / count}};
}

// Slope of log(y) over log(x) by least squares.
double exponent(const json& rows, const char* key) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (const auto& row : rows) {
    const double x = std::log(row["sandboxes"].get<double>()), y = std::log(std::max(row[key].get<double>(), 1e-9));
    n += 1, sx += x, sy += y, sxx += x * x, sxy += x * y;
  }
  return n < 2 ? 1 : (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

json in_own_process(const std::string& self, std::size_t count, std::size_t in_flight) {
  const auto command = "'" + self + "' --one " + std::to_string(count) + " --in-flight " + std::to_string(in_flight);
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  char piece[4096];
  while (pipe && std::fgets(piece, sizeof piece, pipe))
    text += piece;
  if (!pipe || ::pclose(pipe) != 0) {
    std::cerr << "simulated_lifecycles: the measurement with " << count << " sandboxes failed\n";
    std::exit(1);
  }
  return json::parse(text);
}

} // namespace

int main(int argc, char** argv) {
  std::vector<std::size_t> counts{100, 1'000, 10'000};
  std::size_t in_flight = 64, one = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--one") {
      one = std::stoul(value);
    } else if (key == "--in-flight") {
      in_flight = std::max<std::size_t>(1, std::stoul(value));
    } else if (key == "--counts") {
      counts.clear();
      std::istringstream in{value};
      for (std::string part; std::getline(in, part, ',');)
        counts.push_back(std::stoul(part));
    } else {
      std::cerr << "usage: simulated_lifecycles [--counts 100,1000,10000] [--in-flight 64]\n";
      return 2;
    }
  }
  if (one > 0) {
    std::cout << measure(one, in_flight).dump() << '\n';
    return 0;
  }
  json rows = json::array();
  for (const auto count : counts)
    rows.push_back(in_own_process(argv[0], count, in_flight));
  const double time = exponent(rows, "seconds"), memory = exponent(rows, "pss_bytes_added");
  std::cout << json{{"runs", rows},
                    {"time_exponent", time},
                    {"memory_exponent", memory},
                    {"bound", 1.1},
                    {"within", time <= 1.1 && memory <= 1.1}}
                   .dump(2)
            << '\n';
  return 0;
}
