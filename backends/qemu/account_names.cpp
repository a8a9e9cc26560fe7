/// The embedded driver, run as root, resolves the account that its package was built for (`libvirt-qemu`) before it reads
/// qemu.conf, where we name root. That account is only made by libvirt-daemon-system, which brings a daemon, a firewall
/// and a network with it. So in this program, and only here, the name stands for root where the host does not know it:
/// a program's own definition of these two functions comes before libc's for every library in it.

#include <dlfcn.h>
#include <grp.h>
#include <pwd.h>

#include <cstring>

namespace {

constexpr const char* package_account = "libvirt-qemu";

template <class Lookup>
Lookup* next(const char* name) {
  return reinterpret_cast<Lookup*>(::dlsym(RTLD_NEXT, name));
}

} // namespace

extern "C" int getpwnam_r(const char* name, passwd* entry, char* buffer, size_t size, passwd** result) {
  static auto* lookup = next<decltype(getpwnam_r)>("getpwnam_r");
  int rc = lookup(name, entry, buffer, size, result);
  if (!*result && std::strcmp(name, package_account) == 0)
    return lookup("root", entry, buffer, size, result);
  return rc;
}

extern "C" int getgrnam_r(const char* name, group* entry, char* buffer, size_t size, group** result) {
  static auto* lookup = next<decltype(getgrnam_r)>("getgrnam_r");
  int rc = lookup(name, entry, buffer, size, result);
  if (!*result && std::strcmp(name, package_account) == 0)
    return lookup("root", entry, buffer, size, result);
  return rc;
}
