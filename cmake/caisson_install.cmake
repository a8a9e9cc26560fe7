# What `cmake --install` lays down beside the two programs and their pages: the library with its package files, the helper
# programs, the guest where it has been built, and the configuration. Everything is found relative to where it stands, so
# the tree may be moved as a whole.
include(CMakePackageConfigHelpers)

install(TARGETS caisson_shared EXPORT CaissonTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/caisson DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")

set(package_directory ${CMAKE_INSTALL_LIBDIR}/cmake/Caisson)
install(EXPORT CaissonTargets NAMESPACE Caisson:: DESTINATION ${package_directory})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/CaissonConfig.cmake.in ${PROJECT_BINARY_DIR}/CaissonConfig.cmake
  INSTALL_DESTINATION ${package_directory})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/CaissonConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/CaissonConfig.cmake ${PROJECT_BINARY_DIR}/CaissonConfigVersion.cmake
  DESTINATION ${package_directory})

file(RELATIVE_PATH CAISSON_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${PROJECT_SOURCE_DIR}/cmake/caisson.pc.in ${PROJECT_BINARY_DIR}/caisson.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/caisson.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET caisson-backend-qemu)
  install(TARGETS caisson-backend-qemu RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/caisson)
endif()
foreach(architecture x86_64 aarch64)
  install(DIRECTORY ${PROJECT_BINARY_DIR}/guest/${architecture}/ DESTINATION ${CMAKE_INSTALL_DATADIR}/caisson/guest/${architecture}
    OPTIONAL FILES_MATCHING PATTERN vmlinux PATTERN bzImage PATTERN Image PATTERN initramfs.cpio PATTERN manifest.json)
endforeach()
# With these `caisson run` makes a guest that is not there.
set(guest_build ${CMAKE_INSTALL_DATADIR}/caisson/guest-build)
install(PROGRAMS ${PROJECT_SOURCE_DIR}/guest/image/build DESTINATION ${guest_build})
set(image ${PROJECT_SOURCE_DIR}/guest/image)
install(FILES ${image}/debian.py ${image}/kernel_source.py ${image}/kernel-aarch64.config DESTINATION ${guest_build})
if(TARGET caisson-agent AND NOT CAISSON_SANITIZE)
  install(TARGETS caisson-agent RUNTIME DESTINATION ${guest_build}/agents/x86_64)
endif()
install(PROGRAMS ${PROJECT_BINARY_DIR}/guest/agent/aarch64/caisson-agent DESTINATION ${guest_build}/agents/aarch64 OPTIONAL)
if(EXISTS ${PROJECT_SOURCE_DIR}/config/configuration.toml)
  install(FILES ${PROJECT_SOURCE_DIR}/config/configuration.toml DESTINATION ${CMAKE_INSTALL_DATADIR}/caisson)
endif()
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/caisson)
