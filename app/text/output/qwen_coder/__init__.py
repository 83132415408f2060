"""Calls as Qwen3-Coder writes them, which look like XML and aren't: their values are escaped by nothing.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

A parameter that is a string is its text as it is, any other is JSON; which is which is in the tool's schema.
"""
