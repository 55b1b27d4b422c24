{
  description = "chatq: one Python file with a page, two tables and a chat wired to your own model";

  # The last release that still has Intel Macs.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { nixpkgs, ... }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      forSystems = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      tools = pkgs: lib.attrValues { inherit (pkgs) python3 ollama curl; };

      # What `nix develop` and `nix run` share: functions that return, since an exit in a
      # hook closes the terminal. On Linux, wheels (numpy's) look for the two libraries;
      # they come last, so that what the person has set wins.
      prepare = pkgs: ''
        ${lib.optionalString pkgs.stdenv.hostPlatform.isLinux ''
          export LD_LIBRARY_PATH="''${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${pkgs.stdenv.cc.cc.lib}/lib:${pkgs.zlib}/lib"
        ''}
        chatq_venv() { # FOLDER [PACKAGE]
          local venv=$1/.venv python=${pkgs.python3}/bin/python3 clear=""
          # A venv is good only for the folder and the Python it was made with.
          [ "$(cat "$venv/made-for" 2>/dev/null)" = "$venv $python" ] || clear=--clear
          [ "$clear" ] || ! cmp -s "$1/requirements.txt" "$venv/has-$2" || return 0
          echo "Bringing .venv up to requirements.txt: the first time this takes a minute."
          if [ "$clear" ]; then
            [ ! -d "$venv" ] || echo "Another folder's or another Python's, it is made anew, without what you added by hand."
            "$python" -m venv --clear "$venv" && echo "$venv $python" >"$venv/made-for" || return 1
          fi
          rm -f "$venv"/has-*
          "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$1/requirements.txt" ''${2:+"$2"} ||
            { echo "pip could not install all of requirements.txt; its reason stands above."; return 1; }
          tee "$venv/has-" "$venv/has-$2" <"$1/requirements.txt" >/dev/null
        }
        chatq_ollama() { # FOLDER
          local host=''${OLLAMA_HOST:-} port=11434 given="" pid ask
          # A build server needs no model, and with OPENAI_BASE_URL it is elsewhere.
          [ -z "''${CI:-}''${OPENAI_BASE_URL:-}" ] || return 0
          # Ollama's own reading of OLLAMA_HOST; another machine's is not ours to start.
          host=''${host//[\"\'[:space:]]/}
          [[ $host != http://* ]] || port=80
          host=''${host#http://} host=''${host%/}
          [[ ! $host =~ ^(\[.*\]|[^:]*):([^:/]*)$ ]] || { host=''${BASH_REMATCH[1]} given=''${BASH_REMATCH[2]}; }
          [[ ! $given =~ ^[0-9]{1,5}$ ]] || ((10#$given > 65535)) || port=$given
          case $host in
            "" | 0.0.0.0) host=127.0.0.1 ;;
            :: | ::1 | "[::]" | "[::1]") host="[::1]" ;;
            localhost | 127.*.*.*) ;;
            *) return 0 ;;
          esac
          ask=(curl -q -gsf --noproxy "*" --max-time 2 -o /dev/null "http://$host:$port/api/version")
          ! "''${ask[@]}" || return 0
          mkdir -p "$1/data"
          # A session of its own, or Ctrl-C at the prompt would end it.
          pid=$(python3 -c 'import subprocess as s, sys; print(s.Popen(["ollama", "serve"], stdin=s.DEVNULL,
            stdout=open(sys.argv[1], "w"), stderr=s.STDOUT, start_new_session=True).pid)' "$1/data/ollama.log")
          for _ in {1..50}; do
            sleep 0.1
            ! "''${ask[@]}" || { echo "No Ollama answered, so one was started; it stays on (kill $pid ends it)."; return 0; }
          done
          echo "Ollama did not start: data/ollama.log says why."
        }
      '';

      hook = pkgs: package: ''
        ${prepare pkgs}
        chatq_enter() {
          local root=$PWD
          until [ -f "$root/flake.nix" ] && [ -f "$root/requirements.txt" ]; do
            [ "$root" ] || { echo "This is not a chatq folder: cd into your clone, then nix develop again."; return 0; }
            root=''${root%/*}
          done
          chatq_venv "$root" "${package}"
          export VIRTUAL_ENV=$root/.venv PATH=$root/.venv/bin:$PATH
          [ ! -d "$VIRTUAL_ENV/${pkgs.python3.sitePackages}/numpy" ] || python -c "import numpy" 2>/dev/null ||
            echo "numpy is installed but does not import: python -c 'import numpy' says why."
          chatq_ollama "$root"
        }
        chatq_enter >&2 # so that nix develop --command prints the command's own output
        unset -f chatq_venv chatq_ollama chatq_enter
      '';

      # The data lives beside server.py: the app runs where one stands, never in the store.
      app =
        pkgs:
        pkgs.writeShellScriptBin "chatq" ''
          PATH=${lib.makeBinPath (tools pkgs)}:$PATH
          ${prepare pkgs}
          if [ ! -f server.py ] || [ ! -f requirements.txt ] || [ ! -w . ]; then
            echo "git clone the project, cd into the clone and nix run again: the app keeps its data beside its server.py." >&2
            exit 1
          fi
          { chatq_venv "$PWD" "" && chatq_ollama "$PWD"; } >&2 || exit 1
          exec .venv/bin/python server.py "$@"
        '';

      # Everything comes as a wheel, so no compiler: half the download.
      shell =
        pkgs: package:
        pkgs.mkShellNoCC {
          name = "chatq";
          packages = tools pkgs;
          shellHook = hook pkgs package;
        };
    in
    {
      formatter = forSystems (pkgs: pkgs.nixfmt-tree);
      devShells = forSystems (pkgs: {
        default = shell pkgs "";
        jupyter = shell pkgs "jupyterlab==4.6.6";
      });
      apps = forSystems (pkgs: {
        default = {
          type = "app";
          program = lib.getExe (app pkgs);
          meta.description = "Start the server.py of the folder you stand in";
        };
      });
      checks = forSystems (pkgs: {
        shell = pkgs.runCommand "chatq-shell" { nativeBuildInputs = [ pkgs.shellcheck ]; } ''
          shellcheck --shell=bash ${pkgs.writeText "hook" (hook pkgs "")} ${lib.getExe (app pkgs)}
          touch $out
        '';
      });
    };
}
