"""Is there a GPU, does its driver run, does Docker hand it over, has PyTorch code for it?"""
from __future__ import annotations

import re
from collections.abc import Iterator

from .base_image import NATIVE_126, VARIANTS, Choice, arch_list, choose_base_image
from .facts import Driver, Facts
from .findings import Finding, fault, fault_from_text, ok, skip

# Runs one kernel: a list of architectures that looks right is not yet code that runs.
TORCH_PROBE = ("import torch; x = torch.ones(2, device='cuda'); torch.cuda.synchronize((x + x).device); "
               "print('PyTorch', torch.__version__, 'on', torch.cuda.get_device_name(0), "
               "torch.cuda.get_arch_list())")
CONFIGURE = ['sudo nvidia-ctk runtime configure --runtime=docker', 'sudo systemctl restart docker']
OWN_IMAGE = 'in .env: BASE_IMAGE of your own choice   # it is then taken as it is'


def check_driver(facts: Facts, lane: str) -> Iterator[Finding]:
    if not facts.gpu_on_bus:
        yield fault('no-gpu')
        return
    driver = facts.driver
    if not driver.error:
        cards = ', '.join(gpu.name + (f' ({arch_list([gpu])})' if gpu.capability else '') for gpu in driver.gpus)
        yield ok(f'NVIDIA driver {driver.version}: {cards}')
        return
    found = fault_from_text(driver.error, 'driver-unreachable')
    if found.symptom != 'driver-unreachable':
        yield found
        return
    cause, way_out = why_not_loaded(facts)
    yield fault('driver-unreachable', cause=cause, way_out=way_out, seen=driver.error)


def why_not_loaded(facts: Facts) -> tuple[str, list[str]]:
    """The likeliest of the causes, by what lies about: ('', []) when none stands out."""
    host = facts.host
    kernel = host.run('uname', '-r').text
    if facts.module_version and host.which('nvidia-smi'):
        return '', []
    if facts.module_version:
        return (f'The kernel module {facts.module_version} is loaded, but nvidia-smi is not installed.',
                [f'sudo apt-get install -y nvidia-utils-{facts.module_version.split(".")[0]}   # or '
                 f'...-server'])
    if host.owner('/var/run/reboot-required'):
        return 'A reboot is pending: what was installed takes effect with it.', ['sudo reboot']
    built = host.run('modinfo', '-n', 'nvidia').ok
    if built and 'SecureBoot enabled' in host.run('mokutil', '--sb-state').text:
        return ('Secure Boot is on and the module is there but not loaded: it is signed by no key that the '
                'firmware knows.',
                ['sudo update-secureboot-policy --enroll-key   # asks for a one-time password',
                 'sudo reboot    # choose "Enroll MOK" in the blue screen and give that password',
                 '# or switch Secure Boot off in the firmware'])
    if not built and 'nvidia' in host.run('dkms', 'status').text:
        return (f'The driver is installed, but not built for the running kernel {kernel}.',
                [f'sudo apt-get install -y linux-headers-{kernel}',
                 'sudo dkms autoinstall && sudo modprobe nvidia'])
    if 'nouveau' in (host.read('/proc/modules') or ''):
        return ('nouveau, the open driver, holds the card; the NVIDIA driver is not installed or was not '
                'started since.',
                ['scripts/setup_ubuntu.sh driver && sudo reboot'])
    if not built:
        return 'The NVIDIA driver is not installed.', ['scripts/setup_ubuntu.sh driver && sudo reboot']
    return '', []


def check_base_image(facts: Facts, lane: str) -> Iterator[Finding]:
    """Names the CUDA variant for this host, and holds what .env asks for against it."""
    driver = facts.driver
    if driver.error or not driver.gpus:
        return
    choice = choose_base_image(driver)
    wanted = facts.settings.get('BASE_IMAGE', '')
    if wanted:
        yield from _hold_against(facts, wanted, choice)
    elif not choice.image:
        yield _nothing_fits(driver, choice.reason)
        return
    else:
        level = 'ok' if choice.variant == VARIANTS[0][0] else 'warn'
        write = f'BASE_IMAGE={choice.image} in .env    # make up writes it, or: make doctor FIX=1'
        yield Finding(level, _chosen(choice), way_out=[] if level == 'ok' else [write])
    if choice.variant == 'cuda12.6' and driver.number < NATIVE_126 and driver.number < (580,):
        yield Finding('warn', f'driver {driver.version} runs CUDA 12.6 by minor-version compatibility',
                      cause='The image may refuse ("unsatisfied condition: cuda>=12.6") though it would run.',
                      way_out=['in .env: NVIDIA_DISABLE_REQUIRE=1, or: scripts/setup_ubuntu.sh driver && sudo reboot'])
    yield from _arch_setting(facts)


def _chosen(choice: Choice) -> str:
    return f'base image -{choice.variant}-: {choice.reason}'


def _nothing_fits(driver: Driver, reason: str) -> Finding:
    arch = f'sm_{arch_list(driver.gpus[:1]).replace(".", "")}'
    if 'driver' in reason:
        return fault('cuda-too-new', f'no base image fits: {reason}', driver=driver.version, cuda='12.6 or 13.0',
                     way_out=['scripts/setup_ubuntu.sh driver && sudo reboot   # a newer driver', OWN_IMAGE])
    return fault('gpu-architecture', f'no base image fits: {reason}', arch=arch, way_out=[OWN_IMAGE])


def _hold_against(facts: Facts, wanted: str, choice: Choice) -> Iterator[Finding]:
    """BASE_IMAGE of .env stays; said is whether this host can run it."""
    driver = facts.driver
    better = [f'in .env: BASE_IMAGE={choice.image}, then: make rebuild'] if choice.image else []
    for name, oldest, low, high in VARIANTS:
        if f'-{name}-' not in wanted:
            continue
        if driver.number < oldest:
            yield fault('cuda-too-new', f'.env asks for {name}, driver {driver.version} is too old for it',
                        driver=driver.version, cuda=name[4:], way_out=[
                            *better, 'scripts/setup_ubuntu.sh driver && sudo reboot   # or the newer driver'])
            return
        strange = [gpu for gpu in driver.gpus if gpu.capability and not low <= gpu.capability <= high]
        if strange:  # one card of several is a loss, but the others run
            yield fault('gpu-architecture', f'.env asks for {name}, which has no code for {strange[0].name}',
                        arch=f'sm_{arch_list(strange[:1]).replace(".", "")}', way_out=better or [OWN_IMAGE],
                        level='fail' if len(strange) == len(driver.gpus) else 'warn')
            return
        fits = f'{_chosen(choice)}; .env asks for -{name}-, which runs here'
        yield ok(_chosen(choice) if name == choice.variant else fits)
        return
    yield ok(f'base image {wanted} (of .env; not one that this check knows)')


def _arch_setting(facts: Facts) -> Iterator[Finding]:
    wanted, here = facts.settings.get('TORCH_CUDA_ARCH_LIST', ''), arch_list(facts.driver.gpus)
    if wanted and '+PTX' not in wanted and not set(filter(None, here.split(';'))) <= set(re.split('[; ]', wanted)):
        yield fault('gpu-architecture', f'mmcv would be compiled for {wanted}, this host has {here}', level='warn',
                    way_out=[f'in .env: TORCH_CUDA_ARCH_LIST={here}, then: make rebuild'])


def check_toolkit(facts: Facts, lane: str) -> Iterator[Finding]:
    """Docker hands over a GPU if its daemon found the toolkit's hook when it started, for `docker run --gpus` as for
    Compose (moby, daemon/nvidia_linux.go). `docker info` lists the runtime, if it was configured, never the hook.
    """
    docker, host = facts.docker, facts.host
    if docker.error:
        return
    if docker.desktop and facts.on_wsl:
        yield ok('Docker Desktop hands over the GPU of Windows')
    elif docker.desktop:
        yield fault('toolkit-missing', cause=
            'Docker Desktop for Linux runs in a virtual machine that has no GPU.',
                    way_out=['docker context use default   # the Engine, if it is installed beside',
                             'scripts/setup_ubuntu.sh docker toolkit', 'make up DEVICE=cpu'])
    elif docker.knows_nvidia:
        yield ok('Docker knows the NVIDIA runtime')
    elif docker.snap:
        yield fault('toolkit-missing', cause=
            'This Docker is a snap: it reads neither /etc/docker/daemon.json nor the hook.',
                    way_out=['sudo snap remove docker', 'scripts/setup_ubuntu.sh docker toolkit'])
    elif docker.rootless and host.which('nvidia-ctk'):
        yield fault('toolkit-missing', cause='This daemon is rootless and has settings of its own.', way_out=[
            'nvidia-ctk runtime configure --runtime=docker --config="$HOME/.config/docker/daemon.json"',
            'sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place',
            'systemctl --user restart docker'])
    elif host.which('nvidia-container-runtime-hook'):
        yield fault('toolkit-missing', "the toolkit's hook is installed, which will do if Docker was started since",
                    level='warn', cause='Docker was not told of the runtime; a hook that came later it does not see.',
                    way_out=CONFIGURE)
    elif host.which('nvidia-ctk'):
        yield fault('toolkit-missing', 'Docker does not know the NVIDIA runtime', way_out=CONFIGURE, cause=
            'The NVIDIA Container Toolkit is installed, but Docker was not told of it or not restarted since.')
    else:
        yield fault('toolkit-missing', cause='The NVIDIA Container Toolkit is not installed.')


def check_handover(facts: Facts, lane: str) -> Iterator[Finding]:
    """The proof: nvidia-smi in the running lab, or in a container of the lab's image that lives for a second."""
    if facts.docker.error or facts.driver.error:
        return
    name, host = facts.container, facts.host
    if running(facts):
        said = host.run('docker', 'exec', name, 'nvidia-smi', '-L', seconds=60)
        if not said.ok:
            yield fault_from_text(said.text, 'nvml-unknown', f'nvidia-smi fails inside {name}', name=name)
            return
        said = host.run('docker', 'exec', name, 'python', '-c', TORCH_PROBE, seconds=120)
        yield ok(f'inside {name}: {said.text}') if said.ok else fault_from_text(
            said.text, 'gpu-architecture', f'PyTorch inside {name} cannot use the GPU', driver=facts.driver.version)
        return
    if not facts.built(lane):
        yield skip('GPU in a container: not tried, the image is not built yet (make build)')
        return
    said = host.run('docker', 'run', '--rm', '--pull', 'never', '--gpus', 'all', '--entrypoint', 'nvidia-smi',
                    facts.service(lane)['image'], '-L', seconds=120)
    yield ok(f'a container sees {said.text}') if said.ok else fault_from_text(
        said.text, 'toolkit-missing', 'a container cannot have the GPU', driver=facts.driver.version)


def running(facts: Facts) -> bool:
    name = facts.container
    said = facts.host.run('docker', 'ps', '--filter', f'name=^/?{name}$', '--filter', 'status=running',
                          '--format', '{{.Names}}')
    return said.ok and said.text == name


def check_local_gpu(facts: Facts, lane: str) -> Iterator[Finding]:
    """Without a container: the driver where there is a card, and PyTorch of .venv on it."""
    if not facts.gpu_on_bus:
        yield ok('no NVIDIA GPU here: the lab runs on the CPU')
        return
    if not (facts.module_version or facts.on_wsl):
        cause, way_out = why_not_loaded(facts)
        yield fault('driver-unreachable', 'no NVIDIA driver is loaded: the lab runs on the CPU', level='warn',
                    cause=cause, way_out=way_out)
        return
    found = list(check_driver(facts, lane))
    yield from found
    python = facts.path('.venv', 'bin', 'python')
    if found[-1].level != 'ok' or not facts.host.owner(python):
        return
    said = facts.host.run(python, '-c', TORCH_PROBE, seconds=120)
    yield ok(said.text) if said.ok else fault_from_text(said.text, 'gpu-architecture', 'PyTorch cannot use the GPU',
                                                        driver=facts.driver.version)
