#!/usr/bin/env bash
# After re-installing Ubuntu: everything this host needs for the lab, step by step, each done only if it is not yet.
#
#   scripts/setup_ubuntu.sh --check            look, change nothing; exit status 1 if something is to be done
#   scripts/setup_ubuntu.sh --dry-run          print every command, run none
#   scripts/setup_ubuntu.sh                    do what is missing (asks for the password of sudo)
#   scripts/setup_ubuntu.sh docker toolkit     these steps alone
#   scripts/setup_ubuntu.sh disk --disk /dev/sdb1 --mount /data
#
# Steps: driver   the NVIDIA driver that Ubuntu recommends for the card
#        docker   Docker Engine, Compose and buildx, from Docker's own repository unless Ubuntu's Engine is there
#        toolkit  NVIDIA Container Toolkit, known to Docker
#        group    the group docker, so that docker works without sudo (who is in it is as good as root)
#        shm      shared memory of containers: 8G instead of 64M, where nothing else is said
#        vscode   Visual Studio Code with the extensions for Python, notebooks and containers
#        disk     a data disk in /etc/fstab; formats only an empty one, and only with --format
#        python   says which command brings a Python for the local lane
#        conda    Miniforge in the home folder; offered, so only when named
# Exit status: 0 done, 1 something is left to do or failed, 2 wrong command line, 3 not an Ubuntu this knows.
# shellcheck disable=SC2329  # the steps are called by name
set -euo pipefail

ALL=(driver docker toolkit group shm vscode disk python)
OFFERED=(conda)
KNOWN_RELEASES='22.04 24.04 26.04'
DEFAULT_SHM=8G
# A folder that stands for / in the tests.
R=${SETUP_ROOT:-}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

mode='do'
disk=''
mount_point=/data
may_format=''
steps=()
reboot=''
relogin=''
left=0

# --- saying and doing -----------------------------------------------------------------------------------------------

die() { printf 'setup_ubuntu: %s\n' "$2" >&2; exit "$1"; }
fine() { printf 'ok    %-8s %s\n' "$step" "$1"; }
note() { printf '      %-8s %s\n' "$step" "$1"; }
todo() { printf 'TODO  %-8s %s\n' "$step" "$1"; left=1; }

# run COMMAND...: print it; run it unless this is a dry run. A command that fails ends the script.
run() {
    printf '+'; printf ' %q' "$@"; printf '\n'
    [ "$mode" = dry-run ] || "$@" ||
        die 1 "step $step failed at the last command above; mend that and call: scripts/setup_ubuntu.sh $step"
}

as_root() { run ${SUDO:+"$SUDO"} "$@"; }

# As the person who called, also where sudo called this script.
as_person() {
    if [ "$(id -u)" = 0 ] && [ "$person" != root ]; then run sudo -u "$person" -H "$@"; else run "$@"; fi
}

# put FILE < TEXT: write a file of the system, unless it says that already.
put() {
    local text
    text=$(cat)
    if [ -f "$R$1" ] && [ "$(cat "$R$1")" = "$text" ]; then return; fi
    printf '+ %stee %s <<END\n%s\nEND\n' "${SUDO:+$SUDO }" "$1" "$text"
    [ "$mode" = dry-run ] || printf '%s\n' "$text" | ${SUDO:+"$SUDO"} tee "$R$1" > /dev/null || die 1 "cannot write $1"
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

updated=''
install_packages() {
    local missing=() package
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ -n "$updated" ] || as_root apt-get update -qq
    updated=yes
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y "${missing[@]}"
}

# repository NAME KEY_URL: the vendor's key, and its sources (deb822, from stdin). apt reads armoured keys as they are.
repository() {
    install_packages ca-certificates curl
    as_root install -d -m 0755 "$R/etc/apt/keyrings"
    as_root curl -fsSL "$2" -o "$R/etc/apt/keyrings/$1.asc"
    as_root chmod a+r "$R/etc/apt/keyrings/$1.asc"
    put "/etc/apt/sources.list.d/$1.sources"
    updated=''
}

have() { command -v "$1" > /dev/null; }
desktop() { [ "$(systemctl get-default 2> /dev/null)" = graphical.target ]; }

gpu_on_bus() {
    local vendor
    for vendor in "$R"/sys/bus/pci/devices/*/vendor; do
        [ -f "$vendor" ] || continue
        if [ "$(cat "$vendor")" = 0x10de ] && [[ $(cat "${vendor%vendor}class") = 0x03* ]]; then return 0; fi
    done
    return 1
}

# --- the steps: NAME_state says what is and returns 0 if nothing is to be done; NAME_do does it ---------------------

driver_state() {
    if ! gpu_on_bus; then fine 'no NVIDIA GPU in this machine'; return; fi
    if [ -f "$R/proc/driver/nvidia/version" ]; then
        local version
        if ! version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null); then
            todo 'nvidia-smi fails although the module is loaded: a reboot after an update is due'
            reboot='the driver was updated'
            return 1
        fi
        version=${version%%$'\n'*}
        fine "driver $version"
        if [ "${version%%.*}" -lt 580 ]; then
            note 'older than 580: the lab takes the base image for CUDA 12.6 (make doctor says so too)'
        fi
        return
    fi
    if dpkg-query -W -f='${db:Status-Status} ${Package}\n' 'nvidia-driver-*' 'nvidia-headless-*' 2> /dev/null |
        grep -q '^installed '; then
        if [ "$(mokutil --sb-state 2> /dev/null)" = 'SecureBoot enabled' ]; then
            note 'Secure Boot is on: after the reboot choose "Enroll MOK" in the blue screen'
        fi
        fine 'the driver is installed, its module is not loaded yet'
        reboot='the driver is not loaded'
        return
    fi
    todo 'the NVIDIA driver is not installed'
    return 1
}

driver_do() {
    [ -z "$reboot" ] || return 0
    install_packages ubuntu-drivers-common
    if [ "$(mokutil --sb-state 2> /dev/null)" = 'SecureBoot enabled' ]; then
        note 'Secure Boot is on: if a password is asked for, the blue screen after the reboot wants it ("Enroll MOK")'
    fi
    as_root ubuntu-drivers install
    reboot='the driver was installed'
}

docker_state() {
    local path
    path=$(command -v docker) || { todo 'Docker is not installed'; return 1; }
    if [[ $path = /snap/* ]]; then
        todo 'this Docker is a snap, which cannot hand over a GPU'
        return 1
    fi
    if ! have dockerd; then todo 'the Docker Engine is not installed, its client is'; return 1; fi
    if ! docker compose version > /dev/null 2>&1; then todo 'Docker Compose is not installed'; return 1; fi
    if ! docker buildx version > /dev/null 2>&1; then  # from 23 on a client cannot build without it
        todo 'buildx, with which Docker builds images, is not installed'
        return 1
    fi
    fine "$(docker --version)"
}

docker_do() {
    if [[ $(command -v docker || true) = /snap/* ]]; then
        die 1 'removing it takes its containers and volumes with it, so that is for you to do:
    sudo snap remove docker && scripts/setup_ubuntu.sh docker'
    fi
    if installed docker.io; then  # Ubuntu's own Engine is good enough; two of them are not
        install_packages docker-compose-v2 docker-buildx
        return
    fi
    repository docker https://download.docker.com/linux/ubuntu/gpg <<END
Types: deb
URIs: https://download.docker.com/linux/ubuntu
Suites: $VERSION_CODENAME
Components: stable
Architectures: $architecture
Signed-By: /etc/apt/keyrings/docker.asc
END
    install_packages docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin
    as_root systemctl enable --now docker
}

toolkit_state() {
    if ! gpu_on_bus; then fine 'not needed: no NVIDIA GPU'; return; fi
    if ! installed nvidia-container-toolkit; then todo 'the NVIDIA Container Toolkit is not installed'; return 1; fi
    if ! grep -qs nvidia-container-runtime "$R/etc/docker/daemon.json"; then
        todo 'Docker does not know the NVIDIA runtime'
        return 1
    fi
    fine 'installed, and known to Docker'
}

toolkit_do() {
    if ! installed nvidia-container-toolkit; then
        repository nvidia-container-toolkit https://nvidia.github.io/libnvidia-container/gpgkey <<END
Types: deb
URIs: https://nvidia.github.io/libnvidia-container/stable/deb/$architecture
Suites: /
Signed-By: /etc/apt/keyrings/nvidia-container-toolkit.asc
END
        install_packages nvidia-container-toolkit
    fi
    as_root nvidia-ctk runtime configure --runtime=docker
    note 'Docker restarts now; running containers stop, those with a restart policy come back'
    as_root systemctl restart docker
}

group_state() {
    if [ "$person" = root ]; then fine 'root needs no group'; return; fi
    if id -nG "$person" | tr ' ' '\n' | grep -qx docker; then fine "$person is in the group docker"; return; fi
    todo "$person is not in the group docker"
    return 1
}

group_do() {
    as_root groupadd -f docker
    as_root usermod -aG docker "$person"
    relogin=yes
}

shm_state() {
    if grep -qs '"default-shm-size"' "$R/etc/docker/daemon.json"; then
        fine "$(grep -o '"default-shm-size"[^,}]*' "$R/etc/docker/daemon.json") in /etc/docker/daemon.json"
        return
    fi
    todo 'a container gets 64M of shared memory where nothing else is said: too little for worker processes'
    return 1
}

# Only a limit: memory is taken when it is used. The other settings of the file stay.
shm_do() {
    as_root install -d -m 0755 "$R/etc/docker"
    as_root python3 -c 'import json, os, sys
path, size = sys.argv[1:]
settings = json.load(open(path)) if os.path.exists(path) and os.path.getsize(path) else {}
settings["default-shm-size"] = size
with open(path + ".new", "w") as file:
    json.dump(settings, file, indent=4)
    file.write("\n")
os.replace(path + ".new", path)' "$R/etc/docker/daemon.json" "$DEFAULT_SHM"
    if systemctl is-active --quiet docker 2> /dev/null; then as_root systemctl reload docker; fi
}

vscode_state() {
    if have code; then fine 'Visual Studio Code is installed'; return; fi
    if ! desktop && [ -z "$asked_for" ]; then
        fine 'no desktop here: run VS Code where you sit, with the extension Remote - SSH'
        return
    fi
    todo 'Visual Studio Code is not installed'
    return 1
}

vscode_do() {
    repository vscode https://packages.microsoft.com/keys/microsoft.asc <<END
Types: deb
URIs: https://packages.microsoft.com/repos/code
Suites: stable
Components: main
Architectures: $architecture
Signed-By: /etc/apt/keyrings/vscode.asc
END
    install_packages code
    local extension
    for extension in ms-python.python ms-toolsai.jupyter ms-vscode-remote.remote-containers; do
        as_person code --install-extension "$extension"
    done
}

in_fstab() { awk -v at="$1" '!/^[[:space:]]*#/ && $2 == at { found = 1 } END { exit !found }' "$R/etc/fstab" 2> /dev/null; }

disk_state() {
    if in_fstab "$mount_point"; then
        if findmnt -n --mountpoint "$mount_point" > /dev/null 2>&1; then
            fine "$mount_point is in /etc/fstab and mounted"
            return
        fi
        todo "$mount_point is in /etc/fstab, but not mounted"
        return 1
    fi
    if [ -z "$disk" ] && [ -z "$asked_for" ]; then
        fine "none at $mount_point; to add one: scripts/setup_ubuntu.sh disk --disk /dev/NAME [--mount $mount_point]"
        return
    fi
    todo "no data disk at $mount_point"
    return 1
}

disk_do() {
    if in_fstab "$mount_point"; then
        as_root mkdir -p "$R$mount_point"
        as_root mount "$mount_point"
        return
    fi
    if [ -z "$disk" ]; then
        note 'which one? --disk /dev/NAME; these are there:'
        lsblk -o NAME,SIZE,TYPE,FSTYPE,LABEL,MOUNTPOINTS,MODEL
        left=1
        return
    fi
    local type uuid fresh=''
    lsblk -dn "$disk" > /dev/null 2>&1 || die 1 "$disk is no block device; lsblk lists them"
    if [ "$(lsblk -rno NAME "$disk" | wc -l)" -gt 1 ]; then
        lsblk -o NAME,SIZE,FSTYPE,LABEL,MOUNTPOINTS "$disk"
        die 1 "$disk has parts (above): name the one to mount, --disk /dev/..."
    fi
    if [ -n "$(lsblk -rno MOUNTPOINT "$disk" | tr -d '[:space:]')" ]; then
        die 1 "$disk is in use: mounted at $(lsblk -rno MOUNTPOINT "$disk" | tr '\n' ' ')"
    fi
    if [ -n "$(ls -A "$R$mount_point" 2> /dev/null)" ]; then
        die 1 "$mount_point has files in it, which the disk would hide; choose another folder: --mount /FOLDER"
    fi
    type=$(file_system)
    case $type in
        '') fresh=yes ;;
        ext[234] | xfs | btrfs | ntfs | exfat | vfat | f2fs) note "$disk has $type: it stays as it is and is only mounted" ;;
        *) die 1 "$disk holds $type, which this script does not mount (a part of a RAID, LVM, encrypted, swap?)" ;;
    esac
    if [ -n "$fresh" ]; then
        # Encrypted disks of some kinds carry no mark that a program could know.
        as_root_quietly cmp -n 1048576 "$disk" /dev/zero > /dev/null ||
            die 1 "$disk carries no file system, but its first MiB is not empty either. If nothing on it matters:
    sudo dd if=/dev/zero of=$disk bs=1M count=1"
        [ -n "$may_format" ] || die 1 "$disk is empty. To make a file system on it, say so: --format"
        as_root mkfs.ext4 -q -m 0 -L data "$disk"
        type=ext4
    fi
    uuid=$(as_root_quietly blkid -p -s UUID -o value "$disk" || true)
    if [ "$mode" = dry-run ]; then uuid=${uuid:-UUID-OF-$disk}; fi
    [ -n "$uuid" ] || die 1 "$disk has no UUID"
    [ -f "$R/etc/fstab.before-setup" ] || as_root cp -p "$R/etc/fstab" "$R/etc/fstab.before-setup"
    # nofail: the machine starts without the disk too. noatime: reading a million images writes nothing.
    { cat "$R/etc/fstab"; printf 'UUID=%s %s %s defaults,nofail,noatime 0 2\n' "$uuid" "$mount_point" "$type"; } |
        put /etc/fstab.new
    as_root mv "$R/etc/fstab.new" "$R/etc/fstab"  # whole or not at all: a machine does not start with half of it
    as_root mkdir -p "$R$mount_point"
    as_root systemctl daemon-reload
    as_root mount "$mount_point"
    if [ -n "$fresh" ]; then as_root chown "$person:" "$R$mount_point"; fi
    note "tell the lab: DATASET_DIR=$mount_point/... in .env"
}

as_root_quietly() { ${SUDO:+"$SUDO"} "$@" 2> /dev/null; }

# What is on the disk: asked of three programs, for it must not be overlooked. Empty: nothing at all.
file_system() {
    local found
    found=$(lsblk -dno FSTYPE "$disk" | tr -d '[:space:]')
    [ -n "$found" ] || found=$(as_root_quietly blkid -p -s TYPE -o value "$disk" || true)
    [ -n "$found" ] || found=$(as_root_quietly blkid -p -s PTTYPE -o value "$disk" || true)
    [ -n "$found" ] || found=$(as_root_quietly wipefs --no-act --noheadings --output TYPE "$disk" | head -n 1 || true)
    printf '%s' "$found"
}

python_state() {
    local found
    if found=$("$HERE/find_python.sh" 2> /dev/null); then fine "$found serves the local lane"; return; fi
    fine 'none for the local lane (containers need none); what brings one:'
    "$HERE/find_python.sh" 2>&1 | sed 's/^/               /' || true
}

python_do() { :; }

conda_state() {
    if have conda || [ -x "$home/miniforge3/bin/conda" ]; then fine 'conda is installed'; return; fi
    todo 'conda is not installed (nothing here needs it)'
    return 1
}

conda_do() {
    local name folder
    install_packages ca-certificates curl
    name=Miniforge3-Linux-$(uname -m).sh
    folder=$home/.cache/miniforge
    as_person mkdir -p "$folder"
    as_person curl -fL --output-dir "$folder" -O "https://github.com/conda-forge/miniforge/releases/latest/download/$name"
    as_person bash "$folder/$name" -b -p "$home/miniforge3"
    as_person "$home/miniforge3/bin/conda" init bash
    as_person rm -r "$folder"
}

# --- which steps, in which order ------------------------------------------------------------------------------------

usage() { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
        --check) mode=check ;;
        --dry-run) mode=dry-run ;;
        --disk) disk=${2:?--disk wants a device}; shift ;;
        --mount) mount_point=${2:?--mount wants a folder}; shift ;;
        --format) may_format=yes ;;
        -h | --help) usage; exit 0 ;;
        *)
            case " ${ALL[*]} ${OFFERED[*]} " in
                *" $1 "*) steps+=("$1") ;;
                *) die 2 "no such step or option: $1 (steps: ${ALL[*]} ${OFFERED[*]}; --help)" ;;
            esac ;;
    esac
    shift
done
case $mount_point in
    / | *[[:space:]]* | [!/]*) die 2 "--mount $mount_point: a full path without spaces, and not /" ;;
esac

ID='' VERSION_ID='' VERSION_CODENAME=''
# shellcheck disable=SC1091
[ ! -f "$R/etc/os-release" ] || . "$R/etc/os-release"
case " $KNOWN_RELEASES " in
    *" $VERSION_ID "*) [ "$ID" = ubuntu ] || VERSION_ID="$ID $VERSION_ID" ;;
    *) VERSION_ID="${ID:-unknown} $VERSION_ID" ;;
esac
case $VERSION_ID in
    *' '*) die 3 "this is $VERSION_ID; the script knows Ubuntu $KNOWN_RELEASES. Nothing was changed. What a host needs: Docker
Engine with Compose, and for a GPU its driver and the NVIDIA Container Toolkit; then: make doctor" ;;
esac

SUDO=''
if [ "$(id -u)" != 0 ]; then
    SUDO=sudo
    [ "$mode" = check ] || have sudo || die 1 'neither root nor sudo: call this as root'
fi
person=${SUDO_USER:-$(id -un)}
home=$(getent passwd "$person" | cut -d: -f6)
architecture=$(dpkg --print-architecture)
asked_for=${steps[*]:+yes}
[ ${#steps[@]} -gt 0 ] || steps=("${ALL[@]}")

for step in "${steps[@]}"; do
    todo_before=$left
    if "${step}_state"; then continue; fi
    [ "$mode" != check ] || continue
    left=$todo_before  # about to be done
    "${step}_do"
done

step=''
if [ -f "$R/var/run/reboot-required" ]; then reboot=${reboot:-"$(cat "$R/var/run/reboot-required")"}; fi
[ -z "$relogin" ] || echo 'Log out and in again: the group docker counts from the next login.'
[ -z "$reboot" ] || echo "A reboot is due ($reboot): sudo reboot"
case $mode-$left in
    check-0) [ -n "$reboot" ] || echo 'Nothing to do. Next: make doctor' ;;
    check-1) echo 'To do it: scripts/setup_ubuntu.sh    (--dry-run prints the commands)' ;;
    do-0) echo 'Done. Next: make doctor' ;;
    dry-run-*) echo 'Nothing was changed (--dry-run).'; left=0 ;;
esac
exit "$left"
