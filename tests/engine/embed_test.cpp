// The library as a stranger's program sees it: nothing but caisson/engine.hpp.

#include <caisson/engine.hpp>

#include <gtest/gtest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <optional>
#include <set>

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t mib = std::uint64_t{1} << 20;

/// On a tmpfs, with a path that leaves room for sockets.
struct place {
  place() {
    char name[] = "/dev/shm/csn-XXXXXX";
    top = ::mkdtemp(name);
  }
  ~place() {
    std::error_code ignored;
    fs::remove_all(top, ignored);
  }
  caisson::engine_options options() const {
    caisson::engine_options o;
    o.state_directory = top + "/state";
    o.run_directory = top + "/run";
    o.cache_directory = top + "/cache";
    return o;
  }
  std::string top;
};

caisson::sandbox_options simulated(std::string name) {
  caisson::sandbox_options o;
  o.name = std::move(name);
  o.config_path = CAISSON_CONFIGURATION;
  o.hypervisor = "simulated";
  return o;
}

/// What a callback has said, for a test that waits.
template <class T> struct mailbox {
  void put(T value) {
    std::lock_guard hold{mutex};
    all.push_back(std::move(value));
    changed.notify_all();
  }
  bool wait_for(std::function<bool(const std::vector<T>&)> reached) {
    std::unique_lock hold{mutex};
    return changed.wait_for(hold, 60s, [&] { return reached(all); });
  }
  std::vector<T> copy() {
    std::lock_guard hold{mutex};
    return all;
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<T> all;
};

/// The next value of a promise that a callback keeps; a call that is never answered fails the test instead of hanging it.
template <class T> T soon(std::future<T> f) {
  if (f.wait_for(60s) != std::future_status::ready)
    throw std::runtime_error("a call was not answered");
  return f.get();
}

std::size_t threads_now() {
  auto all = fs::directory_iterator{"/proc/self/task"};
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

const auto first_threads = threads_now();

/// A thread that has been joined may stand in /proc for another moment.
bool only_first_threads() {
  for (int look = 0; look < 500 && threads_now() > first_threads; ++look)
    ::poll(nullptr, 0, 10);
  return threads_now() <= first_threads;
}

/// What the open descriptors stand for.
std::multiset<std::string> descriptors_now() {
  std::multiset<std::string> all;
  std::error_code gone;
  for (const auto& e : fs::directory_iterator{"/proc/self/fd"})
    all.insert(fs::read_symlink(e.path(), gone));
  return all;
}

std::string status_line(const std::string& key) {
  std::ifstream in{"/proc/self/status"};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key))
      return line;
  return {};
}

TEST(embedding, a_sandbox_is_made_resized_used_and_removed) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  auto made = engine->create(simulated("a"));
  ASSERT_TRUE(made.ok()) << made.why().text;
  EXPECT_EQ(made.value().name, "a");
  EXPECT_EQ(made.value().state, caisson::sandbox_state::running);
  EXPECT_EQ(made.value().hypervisor, "simulated");
  const auto boot = made.value().memory.boot_bytes;

  caisson::resize_request grow;
  grow.memory_bytes = boot + gib;
  grow.vcpus = 2;
  grow.dry_run = true;
  auto plan = engine->resize("a", grow);
  ASSERT_TRUE(plan.ok()) << plan.why().text;
  EXPECT_EQ(plan.value().state, caisson::operation_state::planned);
  EXPECT_FALSE(plan.value().plan.empty());
  EXPECT_EQ(engine->get("a").value().memory.plugged_bytes, 0u);

  grow.dry_run = false;
  auto grown = engine->resize("a", grow);
  ASSERT_TRUE(grown.ok()) << grown.why().text;
  EXPECT_EQ(grown.value().state, caisson::operation_state::converged) << grown.value().why;
  auto status = engine->get(made.value().id).value();
  EXPECT_EQ(status.memory.plugged_bytes, gib);
  EXPECT_EQ(status.memory.guest_bytes, boot + gib);
  EXPECT_EQ(status.vcpus.online, 2u);

  caisson::resize_request back;
  back.memory_bytes = boot;
  EXPECT_EQ(engine->resize("a", back).value().state, caisson::operation_state::converged);
  EXPECT_EQ(engine->get("a").value().memory.plugged_bytes, 0u);

  auto ran = engine->exec("a", {.argv = {"echo", "hello", "guest"}});
  ASSERT_TRUE(ran.ok()) << ran.why().text;
  EXPECT_EQ(ran.value().out, "hello guest\n");
  EXPECT_EQ(ran.value().exit_code, 0);
  EXPECT_EQ(engine->exec("a", {.argv = {"exit", "42"}}).value().exit_code, 42);
  EXPECT_EQ(engine->exec("a", {.argv = {"no-such-program"}}).value().exit_code, 127);

  EXPECT_EQ(engine->list().value().size(), 1u);
  EXPECT_EQ(engine->stop("a").value().state, caisson::sandbox_state::stopped);
  EXPECT_TRUE(engine->remove("a").ok());
  EXPECT_TRUE(engine->list().value().empty());
}

TEST(embedding, stdin_goes_in_whole_and_output_is_bounded) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  engine->create(simulated("a")).value();
  caisson::exec_request cat{.argv = {"cat"}};
  for (int i = 0; i < 300'000; ++i)
    cat.stdin_bytes += static_cast<char>(i % 251);
  EXPECT_EQ(engine->exec("a", cat).value().out, cat.stdin_bytes);
  cat.stdin_bytes.assign(caisson::exec_output_limit_bytes + 100'000, 'x');
  auto ran = engine->exec("a", cat).value();
  EXPECT_EQ(ran.out.size(), caisson::exec_output_limit_bytes);
  EXPECT_EQ(ran.dropped_bytes, 100'000u);
  EXPECT_EQ(ran.exit_code, 0);
}

TEST(embedding, errors_have_a_code_and_say_what_where_and_how_to_mend) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  EXPECT_EQ(engine->get("nobody").why().code, "not_found");
  EXPECT_NE(engine->get("nobody").why().text.find("nobody"), std::string::npos);
  EXPECT_EQ(engine->create(simulated("\xff")).why().code, "invalid_argument");
  EXPECT_EQ(engine->create(simulated("-starts-badly")).why().code, "invalid_argument");
  auto no_file = simulated("a");
  no_file.config_path = p.top + "/missing.toml";
  EXPECT_NE(engine->create(no_file).why().text.find("missing.toml"), std::string::npos);

  engine->create(simulated("a")).value();
  EXPECT_EQ(engine->create(simulated("a")).why().code, "already_exists");
  for (std::uint64_t size : {std::uint64_t{1}, 200 * gib * gib / gib, std::uint64_t{1} << 60, ~std::uint64_t{0}}) {
    caisson::resize_request bad;
    bad.memory_bytes = size;
    auto r = engine->resize("a", bad);
    EXPECT_FALSE(r.ok() && r.value().state == caisson::operation_state::converged) << size;
  }
  EXPECT_FALSE(engine->exec("a", {}).ok());
  EXPECT_FALSE(engine->exec("a", {.argv = {"echo", "\xff"}}).ok());
  EXPECT_EQ(engine->remove("a").ok(), false) << "a running one needs force";
  EXPECT_TRUE(engine->remove("a", true).ok());
}

TEST(embedding, a_bad_state_directory_is_refused_at_open) {
  place p;
  auto o = p.options();
  o.state_directory = p.top + "/a\nb";
  EXPECT_EQ(caisson::engine::open(o).why().code, "configuration");
  o = p.options();
  fs::create_directory(o.state_directory);
  ::chmod(o.state_directory.c_str(), 0777);
  auto open_to_all = caisson::engine::open(o);
  ASSERT_FALSE(open_to_all.ok());
  EXPECT_NE(open_to_all.why().text.find(o.state_directory), std::string::npos);
}

TEST(embedding, two_engines_with_two_state_directories_work_and_a_third_finds_his_taken) {
  place one, two;
  auto first = caisson::engine::open(one.options()).value();
  auto second = caisson::engine::open(two.options()).value();
  auto a = std::async(std::launch::async, [&] { return first->create(simulated("same")); });
  auto b = std::async(std::launch::async, [&] { return second->create(simulated("same")); });
  EXPECT_TRUE(a.get().ok());
  EXPECT_TRUE(b.get().ok());
  caisson::resize_request grow;
  grow.memory_bytes = first->get("same").value().memory.boot_bytes + 512 * mib;
  EXPECT_EQ(first->resize("same", grow).value().state, caisson::operation_state::converged);
  EXPECT_EQ(second->get("same").value().memory.plugged_bytes, 0u);

  auto third = caisson::engine::open(one.options());
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.why().code, "busy");
  first.reset();
  EXPECT_TRUE(second->get("same").ok()) << "the other engine does not mind";
  EXPECT_TRUE(caisson::engine::open(one.options()).ok());
}

TEST(embedding, the_next_engine_finds_what_the_last_one_left) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  engine->create(simulated("runs")).value();
  engine->create(simulated("stopped")).value();
  engine->stop("stopped").value();
  caisson::resize_request grow;
  grow.memory_bytes = engine->get("runs").value().memory.boot_bytes + 512 * mib;
  auto op = engine->resize("runs", grow).value();
  engine.reset();

  engine = caisson::engine::open(p.options()).value();
  EXPECT_EQ(engine->list().value().size(), 2u);
  EXPECT_EQ(engine->get("stopped").value().state, caisson::sandbox_state::stopped);
  EXPECT_EQ(engine->exec("runs", {.argv = {"true"}}).value().exit_code, 0);
  EXPECT_EQ(engine->get("runs").value().memory.plugged_bytes, 512 * mib);
  auto read_again = std::make_shared<std::promise<caisson::result<caisson::operation>>>();
  engine->wait(op.id, 1s, [read_again](auto r) { read_again->set_value(std::move(r)); });
  auto again = soon(read_again->get_future());
  ASSERT_TRUE(again.ok()) << again.why().text;
  EXPECT_EQ(again.value().state, caisson::operation_state::converged);
}

TEST(embedding, it_writes_nothing_and_leaves_signals_threads_and_descriptors_as_they_were) {
  // Whatever a library makes once a process is there after the first engine.
  {
    place warm;
    caisson::engine::open(warm.options()).value()->create(simulated("a")).value();
  }
  const auto caught = status_line("SigCgt"), ignored = status_line("SigIgn"), blocked = status_line("SigBlk");
  const auto descriptors = descriptors_now();

  place p;
  const auto written = p.top + "/written";
  ::fflush(nullptr);
  int out = ::dup(1), err = ::dup(2), file = ::open(written.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  ::dup2(file, 1);
  ::dup2(file, 2);
  std::string caught_inside;
  {
    auto engine = caisson::engine::open(p.options()).value();
    engine->create(simulated("a")).value();
    auto bad = simulated("b");
    bad.config_path = p.top + "/missing.toml";
    (void)engine->create(bad);
    (void)engine->exec("a", {.argv = {"echo", "x"}});
    (void)engine->exec("a", {.argv = {"echo", "\xff\xfe"}});
    (void)engine->get("\xff");
    auto heard = engine->subscribe(1, [](const caisson::event&) {});
    caught_inside = status_line("SigCgt");
    (void)engine->remove("a", true);
  }
  ::dup2(out, 1);
  ::dup2(err, 2);
  ::close(out);
  ::close(err);
  ::close(file);
  EXPECT_EQ(fs::file_size(written), 0u) << "see " << written;
  EXPECT_EQ(caught_inside, caught);
  EXPECT_EQ(status_line("SigCgt"), caught);
  EXPECT_EQ(status_line("SigIgn"), ignored);
  EXPECT_EQ(status_line("SigBlk"), blocked);
  EXPECT_TRUE(only_first_threads());
  EXPECT_EQ(descriptors_now(), descriptors);
}

TEST(embedding, what_is_under_way_is_answered_before_the_engine_is_gone_and_nothing_runs_after) {
  for (int round = 0; round < 20; ++round) {
    place p;
    auto engine = caisson::engine::open(p.options()).value();
    if (round % 2 == 1)
      engine->create(simulated("a")).value();
    auto answers = std::make_shared<std::atomic<int>>(0);
    auto gone = std::make_shared<std::atomic<bool>>(false);
    auto late = std::make_shared<std::atomic<bool>>(false);
    int asked = 0;
    auto note = [&] {
      ++asked;
      return [=](const auto&) {
        ++*answers;
        if (*gone)
          *late = true;
      };
    };
    for (int i = 0; i < 5; ++i)
      engine->create(simulated("n" + std::to_string(i)), note());
    engine->list(note());
    engine->get("a", note());
    if (round % 2 == 1)
      engine->exec("a", {.argv = {"sleep", "1000"}}, note());
    auto heard = engine->subscribe(1, [=](const caisson::event&) {
      if (*gone)
        *late = true;
    });
    engine.reset();
    EXPECT_EQ(*answers, asked);
    *gone = true;
    EXPECT_FALSE(*late);
    if (round % 3 == 0)
      caisson::engine::open(p.options()).value();
    EXPECT_FALSE(*late);
    EXPECT_EQ(*answers, asked);
  }
}

TEST(embedding, a_cancelled_call_says_so) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  engine->create(simulated("a")).value();
  std::optional<caisson::error> why;
  engine->exec("a", {.argv = {"sleep", "1000"}}, [&](caisson::result<caisson::exec_result> r) { why = r.why(); });
  engine.reset();
  ASSERT_TRUE(why);
  EXPECT_EQ(why->code, "cancelled");
}

TEST(embedding, what_a_callback_throws_is_logged_and_goes_no_further) {
  place p;
  auto o = p.options();
  mailbox<std::string> log;
  o.log = [&](std::string_view line) {
    log.put(std::string{line});
    throw 1;
  };
  auto engine = caisson::engine::open(o).value();
  engine->create(simulated("a"), [](const auto&) { throw std::runtime_error("my own fault"); });
  EXPECT_TRUE(log.wait_for([](const auto& lines) {
    return std::any_of(lines.begin(), lines.end(), [](auto& l) { return l.find("my own fault") != std::string::npos; });
  }));
  auto heard = engine->subscribe(1, [](const caisson::event&) { throw 7; });
  EXPECT_EQ(engine->exec("a", {.argv = {"true"}}).value().exit_code, 0);
}

TEST(embedding, a_blocking_call_inside_a_callback_is_refused_and_an_asynchronous_one_works) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  std::promise<std::string> refusal;
  std::promise<bool> chained;
  engine->create(simulated("a"), [&](const auto&) {
    auto inside = engine->list();
    refusal.set_value(inside.ok() ? "" : inside.why().code);
    engine->list([&](auto r) { chained.set_value(r.ok() && r.value().size() == 1); });
  });
  EXPECT_EQ(soon(refusal.get_future()), "conflict");
  EXPECT_TRUE(soon(chained.get_future()));
}

TEST(embedding, events_come_in_order_from_any_number_and_stop_with_the_subscription) {
  place p;
  auto engine = caisson::engine::open(p.options()).value();
  mailbox<std::uint64_t> live, all;
  auto early = engine->subscribe(0, [&](const caisson::event& e) { live.put(e.seq); });
  engine->create(simulated("a")).value();
  engine->stop("a").value();
  engine->remove("a").value();
  auto late = engine->subscribe(1, [&](const caisson::event& e) { all.put(e.seq); });
  ASSERT_TRUE(live.wait_for([](const auto& seen) { return seen.size() >= 4; }));
  ASSERT_TRUE(all.wait_for([](const auto& seen) { return seen.size() >= 4; }));
  auto seen = all.copy();
  for (std::size_t i = 0; i < seen.size(); ++i)
    EXPECT_EQ(seen[i], i + 1);

  // One that ends itself in its own callback hears nothing more.
  std::unique_ptr<caisson::subscription> self;
  std::mutex self_mutex;
  std::atomic<int> heard{0};
  std::promise<void> ended;
  {
    std::lock_guard hold{self_mutex};
    self = engine->subscribe(1, [&](const caisson::event&) {
      std::unique_ptr<caisson::subscription> mine;
      {
        std::lock_guard inner{self_mutex};
        mine = std::move(self);
      }
      if (++heard == 1) {
        mine.reset();
        ended.set_value();
      }
    });
  }
  soon(ended.get_future());
  late.reset();
  const auto before = all.copy().size();
  engine->create(simulated("b")).value();
  ASSERT_TRUE(live.wait_for([&](const auto& l) { return l.size() >= before + 2; }));
  EXPECT_EQ(heard, 1);
  EXPECT_EQ(all.copy().size(), before);
  engine.reset();
  early.reset();
}

TEST(embedding, a_name_says_its_state) {
  EXPECT_EQ(to_string(caisson::sandbox_state::recovering), "recovering");
  EXPECT_EQ(to_string(caisson::operation_state::partly), "partly");
  EXPECT_FALSE(caisson::version().empty());
}

} // namespace
