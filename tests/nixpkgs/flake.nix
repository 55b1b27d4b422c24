# A stand-in for nixpkgs: the few names that our flake.nix uses, each package a link to a
# program of the machine at hand. programs.json (test_nix.py writes it beside a copy of this
# file) says where the programs are, since a pure evaluation can't look for them.
{
  outputs =
    { self }:
    let
      programs = builtins.fromJSON (builtins.readFile ./programs.json);
      each =
        names: f:
        builtins.listToAttrs (
          map (name: {
            inherit name;
            value = f name;
          }) names
        );
      packagesFor =
        system:
        let
          build =
            name: script: more:
            derivation (
              {
                inherit name system;
                outputs = [ "out" ];
                inherit (programs) PATH;
                builder = programs.bash;
                args = [
                  "-ec"
                  "${script}\n:" # bash stays to the end: Nix kills a builder that has closed its output
                ];
              }
              // more
            );
          link = name: file: build name "mkdir -p $out/bin; ln -s ${file} $out/bin/${name}" { };
          empty = name: build name "mkdir -p $out/lib" { };
        in
        rec {
          python3 = link "python3" programs.python3 // {
            sitePackages = "lib/python${programs.version}/site-packages";
          };
          ollama = link "ollama" programs.ollama;
          curl = link "curl" programs.curl;
          shellcheck = link "shellcheck" programs.shellcheck;
          bashInteractive = link "bash" programs.bash;
          nixfmt-tree = link "treefmt" programs.bash;
          zlib = empty "zlib";
          stdenv = {
            hostPlatform.isLinux = builtins.match ".*-linux" system != null;
            cc.cc.lib = empty "libstdcxx";
          };
          # As nixpkgs' own: sourced first, it puts the packages on the PATH.
          setup = build "stdenv" ''
            mkdir $out
            echo 'for p in $packages; do PATH=$p/bin:$PATH; done; export PATH' >$out/setup
          '' { };
          mkShellNoCC = args: build args.name "touch $out" (args // { stdenv = setup; });
          writeText = name: text: build name "printf %s \"$text\" >$out" { inherit text; };
          writeShellScriptBin =
            name: text:
            build name
              ''
                mkdir -p $out/bin
                printf '#!%s\n%s' ${programs.bash} "$text" >$out/bin/${name}
                chmod +x $out/bin/${name}
              ''
              {
                inherit text;
              };
          runCommand =
            name: args: script:
            build name "for p in $nativeBuildInputs; do PATH=$p/bin:$PATH; done; ${script}" args;
        };
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
    in
    {
      lib = {
        genAttrs = each;
        optionalString = condition: text: if condition then text else "";
        makeBinPath = packages: builtins.concatStringsSep ":" (map (p: "${p}/bin") packages);
        inherit (builtins) attrValues;
        getExe = package: "${package}/bin/${package.name}";
      };
      legacyPackages = each systems packagesFor;
    };
}
