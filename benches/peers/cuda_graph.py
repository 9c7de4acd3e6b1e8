"""Functions recorded as CUDA graphs, so that neither Python nor PyTorch's dispatch is in their time."""
import torch

WARM_UP = 3


def recorded(run, device):
    """`run`, a function without arguments, as a CUDA graph; elsewhere as it is."""
    if torch.device(device).type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay():
        graph.replay()
        return result

    return replay
