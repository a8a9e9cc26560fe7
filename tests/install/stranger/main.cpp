// Somebody's program that keeps a sandbox: stranger CONFIGURATION.TOML DIRECTORY
#include <caisson/engine.hpp>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 3)
    return 2;
  caisson::engine_options where;
  where.state_directory = std::string{argv[2]} + "/state";
  where.run_directory = std::string{argv[2]} + "/run";
  where.cache_directory = std::string{argv[2]} + "/cache";
  auto engine = caisson::engine::open(where).value();
  caisson::sandbox_options wanted;
  wanted.name = "mine";
  wanted.config_path = argv[1];
  wanted.hypervisor = "simulated";
  auto made = engine->create(wanted).value();
  caisson::resize_request more;
  more.memory_bytes = made.memory.boot_bytes + (512u << 20);
  auto resized = engine->resize("mine", more).value();
  auto said = engine->exec("mine", {.argv = {"echo", "from inside"}}).value();
  engine->remove("mine", true).value();
  std::printf("%s %s %s", std::string{caisson::version()}.c_str(), std::string{to_string(resized.state)}.c_str(),
              said.out.c_str());
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
