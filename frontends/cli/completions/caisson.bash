# bash completion for caisson

_caisson_globals() {
  _caisson_opts=() _caisson_words=()
  local i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
    --state-dir | --run-dir)
      _caisson_opts+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}")
      ((i++))
      ;;
    --config | -c | --name | -n | --memory | -m | --cpus | --memory-method | --arch | --hypervisor | --annotation | --env | -e | \
      --workdir | -w | --from | --grace-ms) ((i++)) ;;
    -*) ;;
    *) _caisson_words+=("${COMP_WORDS[i]}") ;;
    esac
  done
}

# Names come from caisson itself (which starts an engine where none runs).
_caisson_sandboxes() {
  caisson "${_caisson_opts[@]}" list 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_caisson() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  local -a _caisson_opts _caisson_words
  local everywhere='--state-dir --run-dir --json --help'
  COMPREPLY=()
  _caisson_globals
  case $prev in
  --state-dir | --run-dir | --workdir | -w)
    mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    return
    ;;
  --config | -c)
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    return
    ;;
  --arch)
    mapfile -t COMPREPLY < <(compgen -W 'x86_64 aarch64' -- "$cur")
    return
    ;;
  --memory-method)
    mapfile -t COMPREPLY < <(compgen -W 'auto dimm virtio-mem' -- "$cur")
    return
    ;;
  --name | -n | --memory | -m | --cpus | --hypervisor | --annotation | --env | -e | --from | --grace-ms) return ;;
  esac
  local verb=${_caisson_words[0]}
  if [[ -z $verb ]]; then
    mapfile -t COMPREPLY < <(compgen -W "run exec console status list stop rm pause resume resize operation events check backends config firmware
      --version $everywhere" -- "$cur")
    return
  fi
  local options=
  case $verb in
  run) options='--config --name --detach --memory --cpus --memory-method --arch --hypervisor --no-guest-build --annotation --interactive --terminal
    --env --workdir' ;;
  exec) options='--interactive --terminal --env --workdir' ;;
  resize) options='--memory --cpus --deadline-ms --dry-run --no-wait' ;;
  operation) options='--cancel' ;;
  stop) options='--grace-ms' ;;
  rm) options='--only-stopped' ;;
  events) options='--from --follow' ;;
  check | backends) options='--config' ;;
  esac
  if [[ $cur == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options $everywhere" -- "$cur")
    return
  fi
  case $verb in
  stop | rm) mapfile -t COMPREPLY < <(compgen -W "$(_caisson_sandboxes)" -- "$cur") ;;
  exec | console | status | resize | pause | resume)
    ((${#_caisson_words[@]} > 1)) || mapfile -t COMPREPLY < <(compgen -W "$(_caisson_sandboxes)" -- "$cur")
    ;;
  backends) ((${#_caisson_words[@]} > 1)) || mapfile -t COMPREPLY < <(compgen -W 'qemu cloud-hypervisor simulated' -- "$cur") ;;
  firmware) ((${#_caisson_words[@]} > 1)) || mapfile -t COMPREPLY < <(compgen -W 'list check prepare' -- "$cur") ;;
  config)
    ((${#_caisson_words[@]} > 1)) && mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    ;;
  esac
}

complete -F _caisson caisson
