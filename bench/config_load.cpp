#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <toml++/toml.h>

#include "config/load.hpp"

/// Loading and checking a configuration against toml++ parsing the same text and nothing more, in interleaved pairs.
/// usage: config_load [--json] [FILE]. Without FILE: Kata's own go-qemu-amd64.toml where CAISSON_KATA_CONFIGS names the
/// directory that has it, else the file that the project ships.
namespace {

using clock_type = std::chrono::steady_clock;

double microseconds(clock_type::time_point begin, clock_type::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

double median(std::vector<double> all) {
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
  return all[all.size() / 2];
}

} // namespace

int main(int argc, char** argv) {
  constexpr int rounds = 500;
  bool json = false;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    if (std::string{argv[i]} == "--json")
      json = true;
    else if (path.empty())
      path = argv[i];
    else
      return std::fputs("usage: config_load [--json] [FILE]\n", stderr), 2;
  }
  if (path.empty()) {
    const char* kata = std::getenv("CAISSON_KATA_CONFIGS");
    path = kata && *kata ? std::string{kata} + "/go-qemu-amd64.toml"
                         : std::string{CAISSON_SOURCE_DIR} + "/config/configuration.toml";
  }
  std::ifstream file(path);
  std::stringstream read;
  read << file.rdbuf();
  if (!file || read.str().empty()) {
    std::fprintf(stderr, "config_load: %s cannot be read\n", path.c_str());
    return 1;
  }
  caisson::config::sources from;
  from.path = path;
  from.files.push_back({path, read.str()});
  const auto& text = from.files[0].text;

  std::size_t seen = 0;
  std::vector<double> bare, whole;
  for (int i = 0; i < rounds + 10; ++i) {
    const auto begin = clock_type::now();
    try {
      seen += toml::parse(text).size();
    } catch (const toml::parse_error& error) {
      std::fprintf(stderr, "config_load: %s is no TOML\n", path.c_str());
      return 1;
    }
    const auto middle = clock_type::now();
    const auto out = caisson::config::load(from, {});
    const auto end = clock_type::now();
    seen += out.problems.size();
    if (i < 10)
      continue;
    bare.push_back(microseconds(begin, middle));
    whole.push_back(microseconds(middle, end));
  }
  const auto a = median(bare), b = median(whole);
  if (json)
    std::printf("{\"file\": \"%s\", \"rounds\": %d, \"toml_parse_us\": %.1f, \"load_and_check_us\": %.1f, \"ratio\": "
                "%.2f, \"bound\": \"2.0 or 500 us\", \"within\": %s}\n",
                path.substr(path.rfind('/') + 1).c_str(), rounds, a, b, b / a,
                b <= std::max(2 * a, 500.0) ? "true" : "false");
  else
    std::printf("%-24s  toml++ alone %.0f us, load and check %.0f us: ratio %.2f (medians of %d, %zu bytes)\n",
                path.substr(path.rfind('/') + 1).c_str(), a, b, b / a, rounds, text.size());
  return seen ? 0 : 1;
}
