"""The completion scripts of bash, zsh and fish. Each hands the line up to the cursor to the program that is typed."""

_BASH = r"""# Completion of dnnkit for bash: source <(dnnkit completion bash), in ~/.bashrc for good.
_dnnkit_ask() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <("${@/#\~\//$HOME/}" __complete bash "$COMP_WORDBREAKS" "${COMP_WORDS[0]}" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    compopt -o nospace 2>/dev/null
}
_dnnkit() {
    _dnnkit_ask "${COMP_WORDS[0]}"
}
_dnnkit_python() {
    if [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == dnnkit && $COMP_CWORD -gt 2 ]]; then
        _dnnkit_ask "${COMP_WORDS[0]}" -m dnnkit
    elif [[ -n $_dnnkit_python_before ]]; then
        "$_dnnkit_python_before" "$@"
    fi
}
complete -F _dnnkit dnnkit
declare -F _completion_loader >/dev/null && _completion_loader python
_dnnkit_python_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \([^ ]*\).*/\1/p')
[[ $_dnnkit_python_before == _dnnkit_python ]] && _dnnkit_python_before=
complete -o bashdefault -o default -F _dnnkit_python python python3
"""

_ZSH = r"""#compdef dnnkit
# Completion of dnnkit for zsh: source <(dnnkit completion zsh), in ~/.zshrc for good, after compinit.
_dnnkit_ask() {
    local word about
    local -a whole shown_whole open shown_open
    while IFS=$'\t' read -r word about; do
        if [[ $word == *[=./\[,] ]]; then
            open+=("$word") shown_open+=("$word${about:+  -- $about}")
        else
            whole+=("$word") shown_whole+=("$word${about:+  -- $about}")
        fi
    done < <("${(@)argv/#\~\//$HOME/}" __complete zsh "$words[1]" "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)
    (( $#whole )) && compadd -l -d shown_whole -- $whole
    (( $#open )) && compadd -l -S '' -d shown_open -- $open
    (( $#whole + $#open ))
}
_dnnkit() {
    _dnnkit_ask "$words[1]"
}
_dnnkit_python() {
    if [[ $words[2] == -m && $words[3] == dnnkit && CURRENT -gt 3 ]]; then
        _dnnkit_ask "$words[1]" -m dnnkit
    else
        ${_dnnkit_python_before:-_default}
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
[[ $_comps[python] == _dnnkit_python ]] || _dnnkit_python_before=$_comps[python]
compdef _dnnkit dnnkit
compdef _dnnkit_python python python3
"""

_FISH = r"""# Completion of dnnkit for fish: dnnkit completion fish > ~/.config/fish/completions/dnnkit.fish
function __dnnkit_ask
    set -l typed (commandline -opc)
    set -l program $typed[1]
    set -l ask (string replace -r '^~/' "$HOME/" -- $program)
    test "$typed[2] $typed[3]" = "-m dnnkit"; and set ask $ask -m dnnkit
    $ask __complete fish "$program" (commandline -cp | string collect) 2>/dev/null
end
function __dnnkit_is_module
    set -l typed (commandline -opc)
    test "$typed[2] $typed[3]" = "-m dnnkit"
end
complete -c dnnkit -f -a '(__dnnkit_ask)'
complete -c python -n __dnnkit_is_module -f -a '(__dnnkit_ask)'
complete -c python3 -n __dnnkit_is_module -f -a '(__dnnkit_ask)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
