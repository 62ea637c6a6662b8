%% Read by file:eval/1 inside the broker at its start: a small server on loopback that runs the Erlang expressions the
%% tests send it, and answers in JSON. rabbitmqctl starts an Erlang of its own for each question, which takes seconds.
%% @PORT@ and @SECRET@ are filled in by rabbitmq.py. A frame is four bytes of length, then the text.
Run = fun(Text) ->
    try
        {ok, Tokens, _} = erl_scan:string(binary_to_list(Text)),
        {ok, Expressions} = erl_parse:parse_exprs(Tokens),
        {value, Value, _} = erl_eval:exprs(Expressions, []),
        [$+, rabbit_json:encode(Value)]
    catch
        Class:Reason -> [$-, unicode:characters_to_binary(io_lib:format("~tp: ~tP", [Class, Reason, 30]))]
    end
end,
Serve = fun(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, <<"@SECRET@", Text/binary>>} -> gen_tcp:send(Socket, Run(Text));
        _ -> ok
    end,
    gen_tcp:close(Socket)
end,
Listen = fun() ->
    {ok, Listener} = gen_tcp:listen(@PORT@, [binary, {ip, {127, 0, 0, 1}}, {packet, 4}, {active, false}, {reuseaddr, true}]),
    Accept = fun Again() ->
        {ok, Socket} = gen_tcp:accept(Listener),
        spawn(fun() -> Serve(Socket) end),
        Again()
    end,
    Accept()
end,
spawn(Listen).
