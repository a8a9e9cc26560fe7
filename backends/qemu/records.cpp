#include "backends/qemu/records.hpp"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backends/qemu/failure.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {

namespace fs = std::filesystem;
using nlohmann::json;

std::string records::path_of(const std::string& sandbox_id) const {
  return directory_ + "/" + sandbox_id + ".json";
}

void records::save(const vm_record& record) const {
  std::error_code error;
  fs::create_directories(directory_, error);
  auto path = path_of(record.sandbox_id);
  auto part = path + ".part";
  json content{{"sandbox_id", record.sandbox_id},
               {"run_directory", record.run_directory},
               {"libvirt_uri", record.libvirt_uri}};
  std::ofstream out{part, std::ios::trunc};
  out << content.dump() << '\n';
  out.close();
  if (out)
    fs::rename(part, path, error);
  if (!out || error)
    throw failure("host_io", "cannot write the VM's record " + path + ": is the file system full or not writable?");
}

void records::remove(const std::string& sandbox_id) const {
  std::error_code ignored;
  fs::remove(path_of(sandbox_id), ignored);
}

std::vector<vm_record> records::all() const {
  std::vector<vm_record> out;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{directory_, ignored}) {
    if (entry.path().extension() != ".json")
      continue;
    std::ifstream in{entry.path()};
    auto content = json::parse(in, nullptr, false);
    if (!content.is_object())
      continue;
    vm_record r{content.value("sandbox_id", ""), content.value("run_directory", ""), content.value("libvirt_uri", "")};
    if (valid_sandbox_id(r.sandbox_id))
      out.push_back(std::move(r));
  }
  return out;
}

} // namespace caisson::qemu
