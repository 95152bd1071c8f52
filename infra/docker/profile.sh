# Login shells (KubeRay starts Ray in one) set PATH anew; this brings rayvec's Python back to its front.
export PATH="/opt/rayvec/bin:${PATH}"
