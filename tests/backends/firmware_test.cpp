#include "backends/firmware.hpp"

#include <gtest/gtest.h>

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>

namespace caisson::firmware {
namespace {

namespace fs = std::filesystem;

const wish arm{"aarch64", "virt"};
const wish x86{"x86_64", "q35"};

class firmware_files : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/tmp/caisson-firmware-XXXXXX";
    top = ::mkdtemp(name);
    for (const char* each : {"share", "etc", "images"})
      fs::create_directories(top + "/" + each);
  }
  void TearDown() override { fs::remove_all(top); }

  std::string text(const std::string& name, const std::string& content) {
    std::ofstream{top + "/" + name, std::ios::binary} << content;
    return top + "/" + name;
  }

  /// A sparse image: `head` and then zeros.
  std::string image(const std::string& name, std::uint64_t bytes, const std::string& head = "code") {
    auto path = text("images/" + name, head);
    fs::resize_file(path, bytes);
    return path;
  }

  /// An x86 image without variables: starts in its last 16 bytes.
  std::string rom(const std::string& name, std::uint64_t bytes, const std::string& head = "") {
    auto path = image(name, bytes - 16, head);
    std::ofstream{path, std::ios::binary | std::ios::app} << std::string{"\xea\x5b\xe0\0\xf0", 5} << "06/23/99   ";
    return path;
  }

  std::string described(const std::string& name, const std::string& code, const std::string& variables,
                        const std::string& features = "", const std::string& targets = arm_target,
                        const char* format = "raw") {
    return text(
        name,
        R"({"description": "d", "interface-types": ["uefi"], "mapping": {"device": "flash", "executable": {"filename": ")" +
            code + R"(", "format": ")" + format + R"("}, "nvram-template": {"filename": ")" + variables +
            R"(", "format": "raw"}}, "targets": [)" + targets + R"(], "features": [)" + features + R"(], "tags": []})");
  }

  catalogue known() const { return read_descriptors({top + "/share", top + "/etc"}); }

  static constexpr const char* arm_target = R"({"architecture": "aarch64", "machines": ["virt-*"]})";
  static constexpr const char* x86_target = R"({"architecture": "x86_64", "machines": ["pc-q35-*"]})";
  std::string top;
};

std::string said_by(const std::function<void()>& todo) {
  try {
    todo();
  } catch (const error& e) {
    return e.code + ": " + e.what();
  }
  return "nothing";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

TEST_F(firmware_files, secure_boot_is_chosen_only_when_asked) {
  auto plain = image("plain.fd", virt_flash_bytes), keys = image("keys.fd", virt_flash_bytes);
  auto vars = image("vars.fd", virt_flash_bytes, "");
  described("share/40-keys.json", keys, vars, R"("secure-boot", "enrolled-keys")");
  described("share/60-plain.json", plain, vars);
  ASSERT_EQ(known().found.size(), 2u);
  EXPECT_EQ(choose(known(), arm)->code, plain) << "although the one with keys is sorted first";
  EXPECT_EQ(choose(known(), {"aarch64", "virt", true})->code, keys);
  EXPECT_EQ(choose(known(), {"aarch64", "virt-7.2"})->code, plain);
  EXPECT_FALSE(choose(known(), x86));
}

TEST_F(firmware_files, a_later_directory_replaces_and_hides) {
  auto one = image("one.fd", virt_flash_bytes), two = image("two.fd", virt_flash_bytes),
       vars = image("v.fd", virt_flash_bytes, "");
  described("share/50-a.json", one, vars);
  described("share/60-b.json", two, vars);
  described("etc/50-a.json", two, vars);
  EXPECT_EQ(choose(known(), arm)->path, top + "/etc/50-a.json");
  text("etc/50-a.json", "");
  EXPECT_EQ(choose(known(), arm)->path, top + "/share/60-b.json");
}

TEST_F(firmware_files, what_cannot_be_used_is_passed_over_and_said) {
  auto code = image("c.fd", virt_flash_bytes), vars = image("v.fd", virt_flash_bytes, "");
  text("share/10-broken.json", "{");
  text("share/11-list.json", "[1]");
  text("share/12-odd.json", R"({"mapping": 7, "targets": {}, "interface-types": "uefi"})");
  described("share/13-gone.json", top + "/nowhere.fd", vars);
  described("share/14-qcow.json", code, vars, "", arm_target, "qcow2");
  described("share/15-other.json", code, vars, "", x86_target);
  described("share/90-good.json", code, vars);
  EXPECT_EQ(known().unusable.size(), 3u);
  EXPECT_EQ(choose(known(), arm)->path, top + "/share/90-good.json");
  EXPECT_EQ(choose(known(), x86)->path, top + "/share/15-other.json");
}

TEST_F(firmware_files, nothing_is_chosen_unasked) {
  described("share/60.json", image("c.fd", virt_flash_bytes), image("v.fd", virt_flash_bytes, ""));
  EXPECT_TRUE(settle(arm, "", "", known()).none());
  EXPECT_EQ(settle(arm, "auto", "", known()).code, top + "/images/c.fd");
  EXPECT_TRUE(settle(arm, "auto", "", known()).flash);
  auto none = said_by([&] { settle(arm, "auto", "", {}); });
  EXPECT_TRUE(has(none, "host_missing") && has(none, "qemu-efi-aarch64")) << none;
}

TEST_F(firmware_files, a_path_takes_the_variables_that_belong_to_it) {
  auto code = image("AAVMF_CODE.fd", virt_flash_bytes), vars = image("template.fd", virt_flash_bytes, "");
  auto keys = image("keys.fd", virt_flash_bytes, "");
  fs::create_symlink(code, top + "/images/secure.fd");
  described("share/40.json", top + "/images/secure.fd", keys, R"("enrolled-keys")");
  described("share/60.json", code, vars);
  EXPECT_EQ(settle(arm, code, "", known()).variables, vars) << "not the keys' one, although it names the same code";
  EXPECT_EQ(settle(arm, code, keys, known()).variables, keys);
  EXPECT_EQ(settle(arm, code, "", {}).variables, "");
  auto beside = image("AAVMF_VARS.fd", virt_flash_bytes, "");
  EXPECT_EQ(settle(arm, code, "", {}).variables, beside);
}

TEST_F(firmware_files, what_does_not_fit_is_refused_with_the_mend) {
  auto good = image("good.fd", virt_flash_bytes);
  described("share/60.json", good, image("v.fd", virt_flash_bytes, ""));
  auto small = said_by([&] { settle(arm, image("small.fd", 2 << 20), "", known()); });
  EXPECT_TRUE(has(small, "has 2 MiB") && has(small, "exactly 64 MiB") &&
              has(small, "caisson firmware prepare --arch aarch64"))
      << small;
  auto qcow = said_by([&] { settle(arm, image("q.fd", virt_flash_bytes, "QFI\xfb"), "", known()); });
  EXPECT_TRUE(has(qcow, "qcow2") && has(qcow, "expected a raw one")) << qcow;
  auto gone = said_by([&] { settle(arm, top + "/nowhere.fd", "", known()); });
  EXPECT_TRUE(has(gone, "No such file") && has(gone, good) && has(gone, "qemu-efi-aarch64")) << gone;
  auto swapped = said_by([&] { settle(arm, image("empty.fd", virt_flash_bytes, ""), "", known()); });
  EXPECT_TRUE(has(swapped, "firmware_volume")) << swapped;
  auto store = said_by([&] { settle(arm, good, image("vars2.fd", 4096, ""), known()); });
  EXPECT_TRUE(has(store, "firmware_volume = ")) << store;
  EXPECT_TRUE(has(said_by([&] { settle(arm, top, "", known()); }), "no regular file"));
  EXPECT_TRUE(has(said_by([&] { settle(x86, image("o.fd", 5000), image("ov.fd", 8192, ""), {}); }), "whole pages"));
}

TEST_F(firmware_files, x86_takes_one_image_without_variables) {
  // As SeaBIOS and OVMF.fd: nothing at the beginning, a jump in the last 16 bytes.
  auto bios = rom("bios.bin", 256 << 10);
  auto images = settle(x86, bios, "", {});
  EXPECT_EQ(images.code, bios);
  EXPECT_FALSE(images.flash);
  EXPECT_FALSE(settle(x86, rom("largest.fd", 16 << 20), "", {}).flash);
  EXPECT_FALSE(settle(x86, rom("qboot.rom", 64 << 10), "", {}).flash);
  EXPECT_TRUE(settle(x86, image("code.fd", 528 << 10), image("vars.fd", 528 << 10, ""), {}).flash);
}

TEST_F(firmware_files, what_x86_has_installed_fits) {
  for (const char* each : {"/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios.bin",
                           "/usr/share/qemu/qboot.rom", "/usr/share/ovmf/OVMF.fd"})
    if (fs::exists(each)) {
      EXPECT_EQ(said_by([&] { settle(x86, each, "", {}); }), "nothing") << each;
    }
}

TEST_F(firmware_files, x86_refuses_what_is_no_image) {
  auto refused = [&](const std::string& path) { return said_by([&] { settle(x86, path, "", {}); }); };
  auto users = refused(text("images/passwd", std::string(5000, 'x')));
  for (const char* part : {"invalid_argument", "firmware = ", "images/passwd", "has 5000 bytes", "multiple of 64 KiB",
                           "16 MiB at most", "firmware_volume"})
    EXPECT_TRUE(has(users, part)) << part << " in " << users;
  EXPECT_TRUE(has(refused(text("images/short", "root")), "shorter than 4 KiB"));
  EXPECT_TRUE(has(refused(rom("big.fd", (16 << 20) + (64 << 10))), "16 MiB at most"));
  EXPECT_TRUE(has(refused(rom("q.fd", 256 << 10, "QFI\xfb")), "expected a raw one"));
  EXPECT_TRUE(has(refused(image("vars.fd", 256 << 10)), "last 16 bytes"));
  EXPECT_TRUE(has(refused(top), "no regular file"));
  EXPECT_TRUE(has(refused("/proc/self/status"), "invalid_argument"));
  auto gone = refused(top + "/nowhere.bin");
  EXPECT_TRUE(has(gone, "host_missing") && has(gone, "No such file") && has(gone, "install the package ovmf")) << gone;
}

TEST_F(firmware_files, variables_that_are_missing_are_mended_by_variables) {
  auto code = image("AAVMF_CODE.fd", virt_flash_bytes), vars = image("v.fd", virt_flash_bytes, "");
  auto other = image("other.fd", virt_flash_bytes), typo = top + "/images/AAVMF_VARZ.fd";
  described("share/60.json", code, vars);
  auto said = [&](const std::string& named) { return said_by([&] { settle(arm, named, typo, known()); }); };
  for (const auto& named : {code, std::string{automatic}}) {
    EXPECT_TRUE(has(said(named), "firmware_volume = \"" + typo)) << said(named);
    EXPECT_TRUE(has(said(named), "leave firmware_volume out, which takes " + vars)) << said(named);
  }
  EXPECT_TRUE(has(said(other), "this host has " + vars + " for " + code)) << said(other);
  auto beside = image("other_VARS.fd", virt_flash_bytes, "");
  auto named = image("other_CODE.fd", virt_flash_bytes);
  EXPECT_TRUE(has(said(named), beside)) << said(named);
  EXPECT_TRUE(has(said_by([&] { settle(arm, other, typo, {}); }), "install the package qemu-efi-aarch64"));
}

TEST_F(firmware_files, each_vm_has_a_store_of_its_own) {
  auto own = top + "/own.fd";
  make_variables({"c", "", true}, arm, own);
  EXPECT_EQ(fs::file_size(own), virt_flash_bytes);
  struct stat s {};
  ASSERT_EQ(::stat(own.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
  EXPECT_LT(s.st_blocks * 512, 1 << 20) << "zeros take no room";
  make_variables({"c", image("t.fd", virt_flash_bytes, "template"), true}, arm, own);
  std::ifstream in{own};
  std::string head(8, ' ');
  in.read(head.data(), 8);
  EXPECT_EQ(head, "template");
  EXPECT_TRUE(has(said_by([&] { make_variables({"c", "", true}, arm, top + "/no/where.fd"); }), "host_io"));
}

TEST_F(firmware_files, prepare_makes_the_pair) {
  auto build = image("QEMU_EFI.fd", 2 << 20);
  auto made = prepare(arm, build, top + "/pair", {});
  EXPECT_EQ(fs::file_size(made.code), virt_flash_bytes);
  EXPECT_EQ(fs::file_size(made.variables), virt_flash_bytes);
  EXPECT_EQ(settle(arm, made.code, made.variables, {}).code, made.code) << "what it makes fits";
  EXPECT_EQ(prepare(arm, build, top + "/pair", {}).code, made.code) << "twice is fine";
  EXPECT_TRUE(has(said_by([&] { prepare(arm, top + "/nowhere", top + "/pair", {}); }), "--from"));
  EXPECT_TRUE(
      has(said_by([&] { prepare(arm, image("big.fd", virt_flash_bytes + 1), top + "/pair", {}); }), "at most 64 MiB"));
  EXPECT_TRUE(has(said_by([&] { prepare(x86, build, top + "/pair", {}); }), "unsupported"));
}

TEST_F(firmware_files, dimms_without_firmware_are_explained) {
  auto why = dimm_without_firmware(arm, known());
  for (const char* part : {"`firmware`", "/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64", "virtio-mem"})
    EXPECT_TRUE(has(why, part)) << part << " in " << why;
  auto other = image("c.fd", virt_flash_bytes);
  described("share/60.json", other, image("v.fd", virt_flash_bytes, ""));
  EXPECT_TRUE(has(dimm_without_firmware(arm, known()), other)) << "names what is here";
  EXPECT_EQ(dimm_without_firmware(x86, known()), "");
}

} // namespace
} // namespace caisson::firmware
