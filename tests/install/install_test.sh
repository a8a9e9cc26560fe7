#!/bin/sh
# install_test.sh BUILD CMAKE COMPILER LIBDIR: what `cmake --install` lays down serves a stranger, wherever it is moved to.
set -eu
build=$1 cmake=$2 compiler=$3 libdir=$4
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
place=$(mktemp -d /dev/shm/csn-XXXXXX)
trap 'rm -rf "$place"' EXIT

fail() {
  echo "install_test: $*" >&2
  exit 1
}

DESTDIR= "$cmake" --install "$build" --prefix "$place/first" >"$place/log" 2>&1 || {
  cat "$place/log"
  fail "the installation failed (is everything built?)"
}
mv "$place/first" "$place/moved"
prefix=$place/moved

for file in bin/caisson bin/caissond libexec/caisson/caisson-backend-qemu include/caisson/engine.hpp \
  share/caisson/configuration.toml share/caisson/guest-build/build share/caisson/guest-build/debian.py share/man/man1/caisson.1 "$libdir/libcaisson.so" "$libdir/pkgconfig/caisson.pc" \
  "$libdir/cmake/Caisson/CaissonConfig.cmake"; do
  [ -e "$prefix/$file" ] || fail "$file is not installed"
done
"$prefix/bin/caisson" --version >/dev/null || fail "the installed caisson does not start"
if grep -rnE '#include.*(caf/|google/|\.pb\.h|toml|grpc|boost|messages/|engine/service)' "$prefix/include"; then
  fail "the installed headers need what a stranger does not have"
fi
if grep -rn "$build" "$prefix/$libdir/cmake" "$prefix/$libdir/pkgconfig"; then
  fail "the package files know the build tree"
fi

check() {
  words=$("$1" "$prefix/share/caisson/configuration.toml" "$place/$2") || fail "the stranger's program failed ($2)"
  case $words in
    *" converged from inside") ;;
    *) fail "the stranger's program said: $words" ;;
  esac
  rm -rf "${place:?}/$2"
}

"$cmake" -S "$here/stranger" -B "$place/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_CXX_COMPILER="$compiler" >"$place/log" 2>&1 &&
  "$cmake" --build "$place/build" >>"$place/log" 2>&1 || {
  cat "$place/log"
  fail "find_package(Caisson) does not serve"
}
check "$place/build/stranger" a

PKG_CONFIG_PATH=$prefix/$libdir/pkgconfig
export PKG_CONFIG_PATH
# shellcheck disable=SC2046
"$compiler" -std=c++20 "$here/stranger/main.cpp" -o "$place/by-pkg-config" $(pkg-config --cflags --libs caisson) \
  "-Wl,-rpath,$prefix/$libdir" || fail "caisson.pc does not serve"
check "$place/by-pkg-config" b
echo "install_test: good"
