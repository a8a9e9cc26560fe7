// The parts of the simulated backend that are no actors: the timeline, the fault plan's text, the model machine and its
// guest.

#include <gtest/gtest.h>

#include "backends/simulated/fault_plan.hpp"
#include "backends/simulated/model_guest.hpp"
#include "backends/simulated/model_machine.hpp"
#include "guest/protocol/host_session.hpp"

namespace caisson::backends::simulated {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t mib = 1u << 20;

TEST(timeline, runs_what_is_due_in_order_each_at_its_own_time) {
  timeline t;
  std::vector<int> order;
  t.after(20ms, [&] { order.push_back(2); });
  t.after(10ms, [&] {
    order.push_back(1);
    t.after(5ms, [&] {
      EXPECT_EQ(t.now(), timeline::time{15ms});
      order.push_back(15);
    });
  });
  const auto never = t.after(12ms, [&] { order.push_back(99); });
  t.cancel(never);
  t.run_until(30ms);
  EXPECT_EQ(order, (std::vector{1, 15, 2}));
  EXPECT_EQ(t.now(), timeline::time{30ms});
  t.run_until(1ms);
  EXPECT_EQ(t.now(), timeline::time{30ms}) << "time went back";
}

TEST(fault_plan, is_read_from_text_and_says_what_is_wrong_with_it) {
  std::string problem;
  const auto p =
      parse_fault_plan("seed=7,boot_ms=5..9,lost=0.25,online_at_most_mib=512,die_at=memory:2,vcpu_unplug=0", problem);
  EXPECT_EQ(problem, "");
  EXPECT_EQ(p.seed, 7u);
  EXPECT_EQ(p.boot_ms.least, 5u);
  EXPECT_EQ(p.boot_ms.most, 9u);
  EXPECT_EQ(p.lost, 0.25);
  EXPECT_EQ(p.online_at_most_bytes, 512 * mib);
  EXPECT_EQ(p.die_at_verb, "memory");
  EXPECT_EQ(p.die_at_count, 2u);
  EXPECT_FALSE(p.vcpu_unplug);
  for (const auto* bad :
       {"lost", "lost=2", "lost=-1", "boot_ms=9..5", "pause=yes", "what=1", "die_at=memory", "seed=x"}) {
    problem.clear();
    const auto d = parse_fault_plan(bad, problem);
    EXPECT_NE(problem.find(bad), std::string::npos) << bad;
    EXPECT_EQ(d.lost, 0);
  }
}

struct machine_test : ::testing::Test {
  std::shared_ptr<model_machine> make(bool virtio_mem, guest_habits habits = {{1, 1}, {1, 1}, {1, 1}, {1, 1}}) {
    machine_shape s;
    s.boot_bytes = 256 * mib;
    s.max_bytes = 2048 * mib;
    s.boot_vcpus = 1;
    s.max_vcpus = 4;
    s.dimm_slots = virtio_mem ? 0 : 4;
    s.virtio_mem = virtio_mem;
    auto m = std::make_shared<model_machine>(s, habits, time, 1);
    m->on_news = [this](const machine_news& n) { news.push_back(n); };
    m->guest_is_up();
    return m;
  }
  timeline time;
  std::vector<machine_news> news;
};

TEST_F(machine_test, does_not_take_up_memory_whose_map_does_not_fit) {
  const auto m = make(false);
  // 64 bytes a page: the map of 2 TiB does not fit in 256 MiB; here the small machine's own limit is what is near.
  EXPECT_EQ(m->plug_dimm("a", 1024 * mib), "");
  time.run_until(1s);
  EXPECT_EQ(m->mem_total_bytes(), m->boot_mem_total_bytes() + 1024 * mib);
  EXPECT_LT(m->mem_available_bytes(), m->mem_total_bytes() - 1024 * mib / 64);
}

TEST_F(machine_test, onlines_no_more_than_its_habits_allow) {
  guest_habits h{{1, 1}, {1, 1}, {1, 1}, {1, 1}};
  h.online_at_most_bytes = 256 * mib;
  const auto m = make(false, h);
  EXPECT_EQ(m->plug_dimm("a", 512 * mib), "");
  time.run_until(1s);
  EXPECT_EQ(m->plugged_bytes(), 512 * mib);
  EXPECT_EQ(m->mem_total_bytes() - m->boot_mem_total_bytes(), 256 * mib);
  EXPECT_EQ(m->offline_blocks(), 2u);
}

TEST_F(machine_test, gives_virtio_mem_back_down_to_where_it_is_stuck) {
  guest_habits h{{1, 1}, {1, 1}, {1, 1}, {1, 1}};
  h.virtio_mem_floor_bytes = 100 * mib;
  const auto m = make(true, h);
  EXPECT_EQ(m->request_virtio_mem(512 * mib), "");
  time.run_until(1s);
  EXPECT_EQ(m->virtio_mem_bytes(), 512 * mib);
  EXPECT_EQ(m->request_virtio_mem(0), "");
  time.run_until(2s);
  EXPECT_EQ(m->virtio_mem_bytes(), 100 * mib);
  EXPECT_EQ(news.back().what, machine_news::kind::memory_size);
  EXPECT_EQ(news.back().size_bytes, 100 * mib);
}

TEST_F(machine_test, stands_still_while_it_is_paused) {
  const auto m = make(false);
  m->pause();
  EXPECT_EQ(m->plug_dimm("a", 128 * mib), "");
  time.run_until(10s);
  EXPECT_EQ(m->mem_total_bytes(), m->boot_mem_total_bytes());
  m->resume();
  time.run_until(20s);
  EXPECT_EQ(m->mem_total_bytes(), m->boot_mem_total_bytes() + 128 * mib);
}

// Host and guest joined without pipes.
struct guest_test : machine_test {
  guest_test() {
    guest_protocol::host_events e;
    e.on_hello = [this](const v1::AgentHello& h) { hello = h; };
    e.on_reply = [this](const v1::AgentReply& r) { replies.push_back(r); };
    e.on_notice = [this](const v1::AgentNotice& n) { notices.push_back(n); };
    e.on_data = [this](std::uint32_t stream, std::span<const std::byte> b) {
      output.append(reinterpret_cast<const char*>(b.data()), b.size());
      host->consumed(stream, b.size());
    };
    e.on_protocol_error = [](const std::string& text) { FAIL() << text; };
    host = std::make_unique<guest_protocol::host_session>(std::move(e));
    machine = make(true);
    guest = std::make_unique<model_guest>(*machine, "x86_64");
    machine->on_guest_change = [this] { guest->machine_changed(); };
    host->open(42);
    exchange();
  }

  void exchange() {
    while (host->has_output() || guest->has_output()) {
      if (host->has_output()) {
        ASSERT_TRUE(guest->receive(host->take_output()));
      }
      if (guest->has_output())
        host->feed(guest->take_output());
    }
  }

  int run(std::vector<std::string> argv, const std::string& input = {}) {
    output.clear();
    notices.clear();
    v1::AgentRequest r;
    r.set_id(++last_id);
    for (auto& a : argv)
      r.mutable_exec_start()->add_argv(a);
    r.mutable_exec_start()->set_stdin_stream(1);
    r.mutable_exec_start()->set_stdout_stream(2);
    r.mutable_exec_start()->set_stderr_stream(3);
    EXPECT_EQ(host->send_request(r), std::nullopt);
    std::size_t at = 0;
    while (at < input.size()) {
      at += host->write(1, std::as_bytes(std::span{input}.subspan(at)));
      exchange();
    }
    host->close(1);
    exchange();
    for (const auto& n : notices)
      if (n.has_exec_exited())
        return n.exec_exited().exit_code();
    return -1;
  }

  std::unique_ptr<guest_protocol::host_session> host;
  std::shared_ptr<model_machine> machine;
  std::unique_ptr<model_guest> guest;
  v1::AgentHello hello;
  std::vector<v1::AgentReply> replies;
  std::vector<v1::AgentNotice> notices;
  std::string output;
  std::uint64_t last_id = 0;
};

TEST_F(guest_test, greets_and_runs_a_handful_of_commands) {
  EXPECT_EQ(hello.memory().boot_mem_total_bytes(), machine->boot_mem_total_bytes());
  EXPECT_TRUE(hello.features().virtio_mem());
  EXPECT_EQ(run({"true"}), 0);
  EXPECT_EQ(run({"false"}), 1);
  EXPECT_EQ(run({"sh", "-c", "exit 7"}), 7);
  EXPECT_EQ(run({"no-such-thing"}), 127);
  EXPECT_EQ(run({"nproc"}), 0);
  EXPECT_EQ(output, "1\n");
  EXPECT_EQ(run({"echo", "a", "b"}), 0);
  EXPECT_EQ(output, "a b\n");
  EXPECT_EQ(run({"cat", "/proc/meminfo"}), 0);
  EXPECT_NE(output.find("MemTotal:"), std::string::npos);
  EXPECT_NE(output.find(std::to_string(machine->mem_total_bytes() / 1024) + " kB"), std::string::npos);
  const std::string much(3 * 1024 * 1024, 'x');
  EXPECT_EQ(run({"cat"}, much), 0);
  EXPECT_EQ(output, much);
}

TEST_F(guest_test, answers_a_wait_for_memory_when_it_is_there_or_the_wait_is_over) {
  const auto wait = [&](std::uint64_t at_least, std::uint32_t ms) {
    v1::AgentRequest r;
    r.set_id(++last_id);
    r.mutable_await_memory()->set_mem_total_at_least_bytes(at_least);
    r.mutable_await_memory()->set_wait_ms(ms);
    EXPECT_EQ(host->send_request(r), std::nullopt);
    exchange();
  };
  const auto total = machine->mem_total_bytes();
  EXPECT_EQ(machine->request_virtio_mem(256 * mib), "");
  wait(total + 256 * mib, 5000);
  EXPECT_TRUE(replies.empty());
  time.run_until(1s);
  exchange();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].facts().memory().mem_total_bytes(), total + 256 * mib);
  wait(total + 512 * mib, 5000);
  time.run_until(5900ms);
  exchange();
  EXPECT_EQ(replies.size(), 1u);
  time.run_until(7s);
  exchange();
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].facts().memory().mem_total_bytes(), total + 256 * mib) << "it says what is, not what was asked";
}

} // namespace
} // namespace caisson::backends::simulated
