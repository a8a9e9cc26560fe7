// The program: its options, exit codes, sockets and signals.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

namespace fs = std::filesystem;

TEST(command, version_is_read_from_its_first_line) {
  const auto f = run_double({"--version"});
  EXPECT_EQ(f.code, 0);
  EXPECT_TRUE(f.out.starts_with("cloud-hypervisor v53.0\n")) << f.out;
  EXPECT_NE(f.out.find("double"), f.out.npos);
  EXPECT_TRUE(run_double({"--version", "--profile", "v51.1"}).out.starts_with("cloud-hypervisor v51.1\n"));
  EXPECT_TRUE(run_double({"--version"}, {"CAISSON_CH_PROFILE=head"}).out.starts_with("cloud-hypervisor v54.0\n"));
}

TEST(command, wrong_arguments_end_with_2) {
  EXPECT_EQ(run_double({}).code, 2);
  EXPECT_EQ(run_double({"--bogus"}).code, 2);
  EXPECT_EQ(run_double({"--api-socket"}).code, 2);
  EXPECT_EQ(run_double({"--seccomp", "maybe"}).code, 2);
  EXPECT_EQ(run_double({"--profile", "v12"}).code, 2);
  EXPECT_EQ(run_double({"--profile", "v51.1", "--no-shutdown"}).code, 2);
  const auto f = run_double({"--fault", "gremlins=1"});
  EXPECT_EQ(f.code, 2);
  EXPECT_NE(f.err.find("there is no fault \"gremlins\""), f.err.npos) << f.err;
  EXPECT_EQ(run_double({"--version"}, {"CAISSON_CH_FAULTS=guest=perhaps"}).code, 2);
}

TEST(command, what_cannot_start_ends_with_1_and_its_causes) {
  const auto f = run_double({"--api-socket", "path=/nonexistent/x"});
  EXPECT_EQ(f.code, 1);
  EXPECT_NE(f.err.find("Error: Cloud Hypervisor exited with the following chain of errors:\n"
                       "  0: Failed to start the VMM thread\n"),
            f.err.npos)
      << f.err;
  EXPECT_EQ(run_double({"--api-socket", "path=/tmp/x", "--event-monitor", "path=/nonexistent/x"}).code, 1);
  EXPECT_EQ(run_double({"--api-socket", "path=/tmp/x", "--event-monitor", "nonsense"}).code, 1);
}

TEST(command, a_second_one_on_the_same_socket_ends_and_the_first_lives) {
  const scratch at;
  double_process first{at.path("v"), {}};
  const auto second = run_double({"--api-socket", "path=" + first.socket()});
  EXPECT_EQ(second.code, 1);
  EXPECT_NE(second.err.find("API socket \"" + first.socket() + "\" is already in use by another running instance"),
            second.err.npos)
      << second.err;
  EXPECT_EQ(first.ask("GET", "vmm.ping").code, "200");
}

TEST(command, sockets_are_the_owners_alone_and_go_with_a_clean_end) {
  const scratch at;
  double_process v{at.path("v"), {}};
  struct stat s {};
  ASSERT_EQ(::stat(v.socket().c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 077, 0u);
  v.signal(SIGTERM);
  EXPECT_EQ(v.wait(), 0);
  EXPECT_FALSE(fs::exists(v.socket()));
  EXPECT_TRUE(fs::exists(v.socket() + ".lock"));
  EXPECT_NE(v.events_to_the_end().find("\"shutdown\""), std::string::npos);
}

TEST(command, a_stale_socket_is_taken_over_since_v53_and_was_not_before) {
  const scratch at;
  {
    double_process v{at.path("v"), {}};
    v.signal(SIGKILL);
    EXPECT_EQ(v.wait(), -SIGKILL);
    EXPECT_TRUE(fs::exists(v.socket()));
  }
  const auto old = run_double({"--profile", "v51.1", "--api-socket", "path=" + at.path("v/api.sock")});
  EXPECT_EQ(old.code, 1);
  EXPECT_NE(old.err.find("Address already in use (os error 98)"), old.err.npos) << old.err;
  double_process again{at.path("v"), {}};
  EXPECT_EQ(again.ask("GET", "vmm.ping").code, "200");
}

TEST(command, events_are_pretty_json_with_an_empty_line_behind_each) {
  const scratch at;
  double_process v{at.path("v"), {}};
  const auto& text = v.event_text();
  const std::string begin = "{\n  \"timestamp\": {\n    \"secs\": ", end = "  \"source\": \"vmm\",\n  \"event\": "
                                                                         "\"starting\",\n  \"properties\": null\n}\n\n";
  EXPECT_TRUE(text.starts_with(begin)) << text;
  EXPECT_TRUE(text.ends_with(end)) << text;
  v.ask("PUT", "vm.boot"); // refused, and yet it says that it is booting
  v.ask("PUT", "vm.delete");
  ASSERT_EQ(v.put("vm.create", small_vm(at)).code, "204");
  v.ask("PUT", "vm.boot");
  v.ask("PUT", "vm.pause");
  v.put("vm.resize", json{{"desired_balloon", 1}}); // refused
  v.ask("PUT", "vm.reboot");
  v.ask("PUT", "vmm.shutdown");
  EXPECT_EQ(v.wait(), 0);
  std::string names;
  const auto all = v.events_to_the_end();
  for (std::size_t from = 0, to = 0; (to = all.find("\n\n", from)) != all.npos; from = to + 2) {
    const auto e = json::parse(all.substr(from, to - from));
    if (e["source"] != "virtio-device")
      names += e["event"].get<std::string>() + " ";
  }
  EXPECT_EQ(names, "starting booting booting booted pausing paused resizing rebooting rebooted shutdown deleted shutdown ");
}

TEST(command, a_socket_descriptor_that_is_no_number_ends_with_1) {
  EXPECT_EQ(run_double({"--api-socket", "fd=many"}).code, 1);
}

} // namespace
} // namespace caisson::cloud_hypervisor::tests
